"""A search over tasks that were named together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search
from support.searching import Dies

import autopeft
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.search.controller.rerun import prepare_rerun


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a search over a table of classes and one of numbers."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = small_search(tmp_path, trials=3, steps=6, baselines="lora,own", fidelity="none", workers=0)
    _, *rows = Path(small["task"]).read_text().splitlines()
    texts = [row.rpartition(",")[0] for row in rows]
    Path("marks.csv").write_text("\n".join(["body,mark", *(f"{t},{i / 7:.2f}" for i, t in enumerate(texts))]))
    Path("tasks.yaml").write_text(
        f"- {{task: {small['task']}, name: mood, text: body, label: verdict}}\n"
        "- {task: marks.csv, name: marks, text: body, label: mark, kind: regression, metric: pearson}\n"
    )
    return {**{k: v for k, v in small.items() if k not in ("text", "label")}, "task": "tasks.yaml"}


def test_it_is_resumed_scored_and_exported_by_its_name(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        search(**arguments, goal="smallest", reporter=Dies(1))
    result = search(resume="run")
    assert result.metric == "mean_of_tasks"
    shared, own = result.baselines
    assert own.name == f"{shared.name} for each task"
    assert own.counts["deployed"] == 2 * shared.counts["deployed"]
    assert result.further_task[own.name] == shared.counts["deployed"]
    assert result.further_task[shared.name] == result.to_dict()["baselines"][0]["further_task"] == 0
    run = load_run("run")
    manifest = run.manifest()
    assert manifest["data"]["source"]["origin"] == "several"
    by_task = [line["by_task"] for line in run.lines("finals.jsonl") if line.get("by_task")]
    assert {name for scores in by_task for split in scores.values() for name in split} == {"mood", "marks"}
    trial = next(line for line in run.lines("trials.jsonl") if line["state"] == "complete")
    job = f"trial-{trial['number']}"
    assert prepare_rerun(run, job).run(lambda step, loss: None).score == pytest.approx(trial["score"])
    again = autopeft.evaluate("run", split="test")
    assert again.score == pytest.approx(result.test[0], abs=1e-6)
    assert autopeft.export("run", tmp_path / "exported").folder.exists()
