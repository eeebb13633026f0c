"""Recipes known to be good, with the evidence for each, fitted to a backbone and a budget."""

from __future__ import annotations
