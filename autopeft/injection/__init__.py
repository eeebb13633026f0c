"""The three ways into a frozen backbone: hook(site), weight(module), kv(attention)."""

from __future__ import annotations

from autopeft.injection.frames import new_token
from autopeft.injection.install import Injection
from autopeft.injection.weights import ParameterPatch, Part

__all__ = ["Injection", "ParameterPatch", "Part", "new_token"]
