"""The registry as it was before a test."""

from __future__ import annotations

import pytest
from support.registries import keep

from autopeft.tasks.kinds import registry


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    keep(monkeypatch, registry.KINDS, registry.METRICS)
    monkeypatch.setattr(registry, "_BY_KIND", {k: dict(v) for k, v in registry._BY_KIND.items()})
