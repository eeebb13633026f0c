"""Why a score of now differs from what the run recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import encoded_task
from torch import nn

from autopeft.export.recorded import Recorded, recorded
from autopeft.export.trained import TrainedHybrid
from autopeft.tasks import Task, get_kind


@pytest.fixture(scope="module")
def task() -> Task:
    return encoded_task().task


def known(task: Task, **changes: Any) -> TrainedHybrid:
    data = {**task.describe(), "rows": {"select": 8, "test": 10}}
    manifest = {
        "data": {**data, **changes.pop("data", {})},
        "arguments": {"seed": 0},
        **changes.pop("manifest", {}),
    }
    fixed: dict[str, Any] = {"load": None, "manifest": manifest, **changes}
    return TrainedHybrid(Path("run"), get_kind(task.kind), task.labels, task.metric, 16, **fixed)


def found(
    task: Task,
    *,
    split: str = "test",
    rows: int = 10,
    seed: int | None = None,
    model: nn.Module | None = None,
    **changes: Any,
) -> Recorded:
    changes.setdefault("result", {"test_mean": 0.9, "test": [0.9], "kind": "train"})
    hybrid = known(task, **changes)
    answer = recorded(hybrid, task, split, rows, 0.8, seed=seed, model=model or nn.Linear(1, 1))
    assert answer is not None
    return answer


def test_each_reason_is_said(task: Task) -> None:
    assert "another device" in found(task).reasons[0]
    (more,) = found(task, rows=25).reasons
    assert "25 rows of test; the run scored 10" in more
    (seed,) = found(task, seed=4).reasons
    assert "seed 4, and by the run with seed 0" in seed
    several = {"test_mean": 0.9, "test": [0.8, 0.9, 1.0]}
    (mean,) = found(task, result=several).reasons
    assert "mean of 3 trainings" in mean
    trial = found(task, split="select", rows=8, result={"search_score": 0.7})
    assert trial.score == 0.7
    assert "trial of the search" in trial.reasons[0]
    full = nn.Linear(1, 1)
    full.dtype = torch.float32  # type: ignore[assignment]
    told = {"test_mean": 0.9, "test": [0.9], "kind": "train", "precision": "bf16"}
    (precision,) = found(task, result=told, model=full).reasons
    assert "in fp32, and was in bf16 in the run" in precision
    assert "another device" in found(task, result={**told, "precision": "fp32"}, model=full).reasons[0]
    (libraries,) = found(task, manifest={"versions": {"torch": "0.1"}}).reasons
    assert "torch 0.1 then" in libraries


@pytest.mark.parametrize("other", [[1], "x", 7])
def test_a_manifest_of_another_form_gives_no_reasons(task: Task, other: Any) -> None:
    (reason,) = found(task, data={"rows": other}, manifest={"arguments": other, "versions": other}).reasons
    assert "another device" in reason
    for manifest in ({"data": other}, {"data": {"source": other}}):
        hybrid = known(task, manifest=manifest)
        assert recorded(hybrid, task, "test", 10, 0.8, seed=1, model=nn.Linear(1, 1)) is None


def test_a_score_on_select_by_another_metric_is_no_record(task: Task) -> None:
    result = {"select_mean": 0.7, "select": [0.7], "trial_metric": "likelihood", "search_score": 0.6}
    older = found(task, split="select", rows=8, result=result)
    assert older.score == 0.7
    hybrid = known(task, result={**result, "select_metric": "likelihood"})
    assert recorded(hybrid, task, "select", 8, 0.8, seed=None, model=nn.Linear(1, 1)) is None


def test_what_cannot_be_compared_is_not(task: Task) -> None:
    model = nn.Linear(1, 1)

    def ask(hybrid: TrainedHybrid, of: Task = task, split: str = "test") -> Recorded | None:
        return recorded(hybrid, of, split, 10, 0.9, seed=None, model=model)

    result = {"test_mean": 0.9, "test": [0.9], "kind": "train"}
    assert ask(known(task, result=result)) == Recorded(0.9, ())
    assert ask(known(task)) is None
    assert ask(known(task, result=result), replace(task, metric="macro_f1")) is None
    assert ask(known(task, result=result, data={"source": {"sha256": "other"}})) is None
    flattered = ask(known(task, result=result), split="train")
    assert flattered is not None
    assert flattered.score is None
