"""Samplers: what proposes the next recipe of a search."""

from __future__ import annotations

from autopeft.search.samplers.history import Point
from autopeft.search.samplers.named import SAMPLERS, default_sampler, make_sampler

__all__ = ["SAMPLERS", "Point", "default_sampler", "make_sampler"]
