from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.searching import MemoryCheckpoints, Stage, honest, ready_to_finish

from autopeft.errors import AutoPEFTError
from autopeft.hybrid.store import WEIGHTS
from autopeft.runs.folder import RunFolder
from autopeft.search.controller.finish import finish
from autopeft.search.core.jobs import Job, JobResult

Make = Callable[..., Stage]


def scored(stage: Stage, score: float) -> Job:
    """Run the next job; its weights come back if they are asked for."""
    job = stage.controller.next()
    assert isinstance(job, Job)
    keep = getattr(job, "keep_above", None)
    files = {WEIGHTS: job.id.encode()} if keep is not None and score > keep else {}
    stage.controller.complete(replace(honest(job), scores={"select": score}, files=files))
    return job


def interrupted(stage: Stage, folder: Path) -> RunFolder:
    stage.controller.interrupt()
    stage.controller.abandon()
    run = RunFolder.create("t", "key", root=folder)
    finish(ready_to_finish(), run, stage.controller, 1.0)
    return run


def test_a_resumed_search_keeps_the_best_of_before(make_stage: Make, tmp_path: Path) -> None:
    first = make_stage()
    best = scored(first, 0.9)
    resumed = make_stage(checkpoints=first.checkpoints)  # the process before it was killed
    worse = scored(resumed, 0.4)
    assert worse.number != best.number
    assert getattr(worse, "keep_above", None) == 0.9
    run = interrupted(resumed, tmp_path)
    assert run.result()["number"] == best.number
    assert (run.winner / WEIGHTS).read_bytes() == best.id.encode()


def test_weights_whose_record_was_never_written_are_let_go_of(make_stage: Make) -> None:
    first = make_stage()
    best = scored(first, 0.6)

    def killed(job: Job, result: JobResult) -> None:
        raise KeyboardInterrupt

    first.controller.strategy.complete = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        scored(first, 0.9)
    assert len(first.checkpoints.held) == 2
    resumed = make_stage(checkpoints=first.checkpoints)
    assert (resumed.controller.best.number, resumed.controller.best.rank) == (best.number, 0.6)
    assert list(resumed.checkpoints.held) == [f"best-{best.number}"]


def test_a_better_trial_takes_the_place_and_a_failed_one_does_not(make_stage: Make) -> None:
    stage = make_stage()
    scored(stage, 0.5)
    better = scored(stage, 0.7)
    job = stage.controller.next()
    assert isinstance(job, Job)
    stage.controller.complete(JobResult(job.id, error="boom", failure="failed", files={WEIGHTS: b"half"}))
    assert stage.checkpoints.held == {f"best-{better.number}": {WEIGHTS: better.id.encode()}}


@pytest.mark.parametrize("left", [None, {}, {"recipe.yaml": b"name: r"}, {WEIGHTS: b""}])
def test_no_winner_is_written_without_its_weights(
    make_stage: Make, tmp_path: Path, left: dict[str, bytes] | None
) -> None:
    first = make_stage()
    best = scored(first, 0.9)
    checkpoints = MemoryCheckpoints()  # somebody has emptied the folder, or a machine lost power
    if left is not None:
        checkpoints.put(f"best-{best.number}", left)
    resumed = make_stage(checkpoints=checkpoints)
    with pytest.raises(AutoPEFTError, match=r"no winner is written without .* --resume "):
        interrupted(resumed, tmp_path)
    (run,) = tmp_path.glob("*key")
    assert not (run / "result.json").exists()
    assert not (run / "recipe.yaml").exists()
