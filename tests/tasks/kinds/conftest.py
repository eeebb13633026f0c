"""The registry as it was before a test."""

from __future__ import annotations

import pytest

from autopeft.tasks.kinds import kind_names, registry


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    kind_names()
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    monkeypatch.setattr(registry, "_BY_KIND", {k: list(v) for k, v in registry._BY_KIND.items()})
