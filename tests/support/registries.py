"""Registries as they were before a test."""

from __future__ import annotations

from typing import Any

import pytest

from autopeft.plugins import Registry


def keep(monkeypatch: pytest.MonkeyPatch, *registries: Registry[Any]) -> None:
    """What is entered from now on is gone when the patch is undone; what there is, is imported first."""
    for registry in registries:
        registry.load()
        monkeypatch.setattr(registry, "_things", dict(registry._things))
        monkeypatch.setattr(registry, "_owners", dict(registry._owners))
        monkeypatch.setattr(registry, "_loaded", True)
