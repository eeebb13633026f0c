"""What a training need not compute again: the states of untouched layers."""

from __future__ import annotations

from autopeft.training.trunk.states import Level, Trunk
from autopeft.training.trunk.store import size_limit

__all__ = ["Level", "Trunk", "size_limit"]
