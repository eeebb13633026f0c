from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from autopeft.cli.progress import LiveReporter, PlainReporter
from autopeft.runs.records import TrialRecord
from autopeft.search.core.events import SearchInfo
from autopeft.search.core.jobs import TrainJob
from autopeft.tasks.summary import DataSummary

LORA: dict[str, Any] = {"layers": [{"attach": [{"lora": {"rank": 2}}]}]}
COUNTS = {"deployed": 1234, "share": 0.00432}
INFO = SearchInfo(
    task="trec",
    model="minilm",
    space="default",
    budget="0.5%",
    limits=(0, 113_566),
    metric="accuracy",
    outline="3 trials of 60 steps",
    jobs=12,
    workers=2,
    estimated_seconds=125,
    notice=None,
    run="runs/x",
)


def record(**more: Any) -> TrialRecord:
    base: dict[str, Any] = {
        "kind": "trial",
        "label": "trial 0",
        "state": "complete",
        "recipe": LORA,
        "counts": COUNTS,
        "score": 0.75,
        "scores": {"select": 0.75},
        "seconds": 12.0,
    }
    return TrialRecord(**{**base, **more})


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (LORA, "lora"),
        ({}, "head only"),
        ({"model": ["mean_pooling"]}, "head only, mean_pooling"),
        ({"layers": [{"attach": ["lora"]}], "model": ["mean_pooling"]}, "lora + mean_pooling"),
        (
            {
                "layers": [
                    {
                        "attach": [
                            {"gate": ["lora", {"chain": {"children": ["ia3", {"lora": {}, "as": "b"}]}}]}
                        ]
                    }
                ]
            },
            "lora + ia3",
        ),
        ({"layers": LORA["layers"], "model": [{"fish_mask": {"keep": "1%"}}]}, "lora + fish_mask"),
    ],
)
def test_a_line_names_each_method_once(recipe: dict[str, Any], text: str) -> None:
    out = io.StringIO()
    PlainReporter(out).on_trial_end(record(recipe=recipe), 0.75, None)
    assert f"  {text}  " in out.getvalue()


def test_plain_lines_tell_what_came_of_each_run() -> None:
    out = io.StringIO()
    watcher = PlainReporter(out)
    data = DataSummary((("test", "20 rows: ham 20 (100.0 %)"),), ("test has rows of one class only.",))
    watcher.on_start(replace(INFO, data=data))
    started = out.getvalue()
    for said in ("113,566", "2 min 05 s", "20 rows: ham 20 (100.0 %)", "one class only"):
        assert said in started
    watcher.on_phase("search", 3)
    watcher.on_step(TrainJob("t0", "trial", "trial 0", LORA), 1, 0.5, None)
    watcher.on_trial_end(record(), 0.75, 130)
    watcher.on_trial_end(
        record(label="trial 1", state="failed", error="no memory", score=None, counts=None), 0.75, None
    )
    watcher.on_trial_end(record(label="trial 2", state="duplicate", duplicate_of=0), 0.75, 9)
    watcher.on_trial_end(record(kind="test", label="test", scores={"test": 0.5}), 0.75, 0)
    watcher.on_trial_end(
        record(kind="baseline", label="untuned", recipe={"name": "untuned"}, steps=0), 0.75, 0
    )
    watcher.on_trial_end(record(label="trial 3", state="estimated", steps=0), 0.75, 0)
    phase, first, failed, again, test, untuned, member = out.getvalue().removeprefix(started).splitlines()
    assert "3 runs" in phase
    for said in ("trial 0", "0.7500", "1,234 (0.432 %)", "lora", "12 s", "best 0.7500", "2 min 10 s"):
        assert said in first
    assert "failed: no memory" in failed
    assert "same as trial 0" in again
    assert test.startswith("test: 0.5000")
    assert "nothing is trained" in untuned
    assert "lora" in member, "it was trained with others"


def test_the_live_table_shows_running_and_finished_rows() -> None:
    out = io.StringIO()
    watcher = LiveReporter(Console(file=out, force_terminal=True, width=110, height=40))
    job = TrainJob("t0", "trial", "trial 0", LORA, steps=60)
    with watcher.showing():
        watcher.on_start(INFO)
        watcher.on_phase("search", 3)
        watcher.on_trial_start(job, COUNTS)
        watcher.on_step(job, 20, 0.5, 100)
        running = _shown(watcher)
        watcher.on_trial_end(record(error="[/] is no markup", state="failed"), 0.75, 60)
    assert "20/60 steps, loss 0.500" in running
    assert "left 1 min 40 s" in running
    final = _shown(watcher)
    assert "20/60" not in final
    assert "failed: [/] is no markup" in final
    assert "1/3" in final
    watcher.on_phase("confirm", 1)
    for _ in range(2):  # a sweep went on
        watcher.on_trial_end(record(), 0.75, 60)
    assert "2/2" in _shown(watcher)


def _shown(watcher: LiveReporter) -> str:
    out = io.StringIO()
    Console(file=out, width=110).print(watcher._draw())
    return out.getvalue()


def test_the_live_table_breaks_no_number_in_80_columns() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    watcher = LiveReporter(console)
    long = "LoRA rank 12 on q, v of all layers, learning rate 0.0045, seed 1000"
    many = {"layers": [{"attach": ["lora", "serial_adapter", "parallel_adapter", "p_tuning_v2", "ia3"]}]}
    size = {"deployed": 1_113_566, "share": 0.0499}
    watcher.on_trial_end(record(label=long, recipe=many, counts=size), 0.75, 130)
    watcher.on_trial_end(record(state="failed", error="what went wrong " * 40, counts=size), 0.75, 130)
    console.print(watcher._draw())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for whole, times in (("1,113,566 (4.990 %)", 2), ("0.7500", 1), ("0.0045", 1), ("parallel_adapter", 1)):
        assert sum(whole in line for line in lines) == times, whole
    assert len(lines) < 20


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        (1, "1 worker,"),
        (2, "2 workers,"),
        (None, "as many workers as the cluster has room for"),
    ],
)
def test_the_opening_tells_how_many_workers_there_are(workers: int | None, told: str) -> None:
    out = io.StringIO()
    PlainReporter(out).on_start(replace(INFO, workers=workers))
    assert told in out.getvalue()
