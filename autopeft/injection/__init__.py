"""The ways into a frozen model: hook(site), weight(module), kv(attention), and behind its logits."""

from __future__ import annotations

from autopeft.injection.bind import Members
from autopeft.injection.caching import allows_cache
from autopeft.injection.install import Injection
from autopeft.injection.threads import changing
from autopeft.injection.weights import ParameterPatch, Part

__all__ = [
    "Injection",
    "Members",
    "ParameterPatch",
    "Part",
    "allows_cache",
    "changing",
]
