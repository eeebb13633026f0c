"""The three ways into a frozen backbone: hook(site), weight(module), kv(attention)."""

from __future__ import annotations

from autopeft.injection.frames import new_token
from autopeft.injection.install import Injection
from autopeft.injection.stacked import LaneInjection, StackedInjection
from autopeft.injection.stacked_roots import split_rows
from autopeft.injection.weights import ParameterPatch, Part

__all__ = [
    "Injection",
    "LaneInjection",
    "ParameterPatch",
    "Part",
    "StackedInjection",
    "new_token",
    "split_rows",
]
