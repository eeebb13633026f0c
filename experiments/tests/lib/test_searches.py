"""Searches of an experiment, and jobs outside of one: what was interrupted is no result."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lib import searches, worker

from autopeft.search.execution import local_executor


def test_an_interrupted_search_is_gone_on_with_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def search(**told: Any) -> None:
        asked.append(told)
        folder = told.get("resume", told.get("out"))
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "result.json").write_text(json.dumps({"interrupted": len(asked) < 3, "test": [0.5]}))

    monkeypatch.setattr(searches, "search", search)
    folder, setting = tmp_path / "run", {"task": "trec", "workers": 0}
    for _ in range(2):
        with pytest.raises(SystemExit, match="was interrupted; run this again"):
            searches.finished_search(folder, **setting)
        assert not searches.ended(folder)
    assert searches.finished_search(folder, **setting)["test"] == [0.5]
    assert searches.finished_search(folder, **setting)["test"] == [0.5]
    assert asked == [{**setting, "out": folder}, *[{"resume": folder, "workers": 0}] * 2]


def test_a_list_of_jobs_that_was_stopped_has_no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal lets the job that runs come to its end; those behind it are missing."""

    def stopped(self: Any, source: Any, runner: Any, setup: Any) -> None:
        source.complete(SimpleNamespace(error=None))
        source.interrupt()

    monkeypatch.setattr(local_executor.LocalExecutor, "run_jobs", stopped)
    with pytest.raises(KeyboardInterrupt):
        worker.run_here(None, worker.make_job("lora", 1), worker.make_job("lora", 1, 1))
