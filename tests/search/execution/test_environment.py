from __future__ import annotations

import logging
import os

import pytest

from autopeft.search.execution.environment import environment, quiet


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "mine")
    monkeypatch.delenv("TUNE_WARN_THRESHOLD_S", raising=False)
    before = dict(os.environ)
    during: list[str | None] = []

    def fail() -> None:
        with environment():
            during.extend(map(os.environ.get, ("RAY_USAGE_STATS_ENABLED", "TUNE_WARN_THRESHOLD_S")))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert during == ["0", "3600"]
    assert dict(os.environ) == before


def test_what_is_meant_for_the_import_does_not_reach_rays_processes() -> None:
    with environment(importing=True):
        during = dict(os.environ)
    with environment():
        running = dict(os.environ)
    name = "RAY_gcs_rpc_server_reconnect_timeout_s"
    assert name in during
    assert name not in running


def test_logging_is_as_before() -> None:
    logger = logging.getLogger("ray.tune")
    logger.setLevel(logging.INFO)
    with quiet():
        assert not logger.isEnabledFor(logging.ERROR)
    assert logger.level == logging.INFO
