"""The precision of trials and sweeps: asked for, or found by a probe before the first trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.searching import Stage, honest

from autopeft.search.controller.precision import PrecisionStage
from autopeft.search.core.jobs import Job, JobResult, PrecisionJob
from autopeft.search.planning.probes import PrecisionFinding, kept_precision, probe_job

LARGE = 10_000_000
Make = Callable[..., Stage]


def chosen(folder: Path, told: list[str] | None = None, **options: Any) -> PrecisionStage:
    return PrecisionStage(
        "auto", parameters=LARGE, folder=folder, notify=None if told is None else told.append, **options
    )


def answering(**measured: float) -> Callable[[Job], JobResult]:
    def outcome(job: Job) -> JobResult:
        return JobResult(job.id, measured=measured) if isinstance(job, PrecisionJob) else honest(job)

    return outcome


FASTER = {"fp32": 3.0, "bf16": 1.0, "error": 0.01}


def test_the_probe_comes_first_alone_and_decides_what_trials_and_sweeps_compute_in(
    make_stage: Make, tmp_path: Path
) -> None:
    told: list[str] = []
    stage = make_stage(precision=chosen(tmp_path, told))
    probe = stage.controller.next()
    assert isinstance(probe, PrecisionJob)
    assert stage.controller.next() is None, "nothing runs beside what is timed"
    stage.controller.complete(answering(**FASTER)(probe))
    stage.play(answering(**FASTER))
    kinds = {(job.kind, job.precision) for job in stage.jobs if "test" not in job.splits}
    assert kinds == {("trial", "bf16"), ("baseline", "bf16"), ("confirm", "fp32")}
    assert {job.precision for job in stage.jobs if "test" in job.splits} == {"fp32"}
    assert {r.precision for r in stage.records if r.kind == "baseline" and "test" not in r.scores} == {"bf16"}
    assert not [record for record in stage.records if record.kind == "probe"]
    assert told == [json.loads((tmp_path / "precision.json").read_text())["why"]]
    assert "3.0 times as fast" in told[0]
    assert "baselines are trained in fp32" in told[0]


def test_what_is_scored_on_test_is_trained_in_the_precision_that_was_asked_for_it(
    make_stage: Make, tmp_path: Path
) -> None:
    told: list[str] = []
    stage = make_stage(precision=chosen(tmp_path, told, final="bf16"))
    stage.play(answering(**{**FASTER, "bf16": 3.0}))
    kinds = {(job.kind, job.precision) for job in stage.jobs if not isinstance(job, PrecisionJob)}
    assert kinds >= {("trial", "fp32"), ("confirm", "bf16"), ("test", "bf16"), ("baseline", "fp32")}
    assert {job.precision for job in stage.jobs if "test" in job.splits} == {"bf16"}
    assert "baselines are trained in bf16" in told[0]


@pytest.mark.parametrize(("parameters", "final"), [(10_000_000, "fp32"), (100_000_000, "bf16")])
def test_what_is_scored_on_test_follows_the_trials_where_the_backbone_is_large(
    make_stage: Make, tmp_path: Path, parameters: int, final: str
) -> None:
    told: list[str] = []
    precision = PrecisionStage(
        "auto", parameters=parameters, folder=tmp_path, notify=told.append, final="auto"
    )
    stage = make_stage(precision=precision)
    stage.play(answering(**FASTER))
    assert {job.precision for job in stage.jobs if job.kind == "trial"} == {"bf16"}
    assert {job.precision for job in stage.jobs if "test" in job.splits} == {final}
    assert [stage.controller.precision(final=last) for last in (False, True)] == ["bf16", final]
    assert ("baselines are trained in fp32" in told[0]) == (final == "fp32")


def test_a_search_that_goes_on_keeps_to_what_was_found(make_stage: Make, tmp_path: Path) -> None:
    chosen(tmp_path).done(probe_job(0), JobResult("precision", measured=FASTER))
    assert kept_precision(tmp_path) == "bf16"
    stage = make_stage(precision=chosen(tmp_path))
    stage.play(honest)
    assert {job.precision for job in stage.jobs if job.kind == "trial"} == {"bf16"}
    assert not [job for job in stage.jobs if job.kind == "probe"]


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (JobResult("precision", error="boom.", failure="failed"), "measuring bf16 failed (boom)"),
        (JobResult("precision", error="gone", failure="lost"), "measuring bf16 failed (gone)"),
        (JobResult("precision"), "nothing to measure bf16 on"),
        (
            JobResult("precision", measured={"fp32": 1.0, "bf16": float("nan"), "error": 0.0}),
            "nothing to measure",
        ),
        (JobResult("precision", measured={"fp32": 1.0, "bf16": 1.0, "error": 0.0}), "1.0 times as fast"),
    ],
)
def test_in_doubt_it_is_fp32(make_stage: Make, tmp_path: Path, result: JobResult, says: str) -> None:
    told: list[str] = []
    stage = make_stage(precision=chosen(tmp_path, told))
    stage.play(lambda job: result if isinstance(job, PrecisionJob) else honest(job))
    assert {job.precision for job in stage.jobs} == {"fp32"}
    assert says in told[0]


def test_a_probe_that_was_interrupted_decides_nothing(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage(precision=chosen(tmp_path))
    assert isinstance(stage.controller.next(), PrecisionJob)
    stage.controller.interrupt()
    stage.controller.abandon()
    assert kept_precision(tmp_path) is None
    assert not (tmp_path / "precision.json").exists()


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_was_asked_for_is_not_measured(asked: str, tmp_path: Path) -> None:
    assert PrecisionStage(asked, parameters=LARGE, folder=tmp_path).value == asked


def test_a_small_backbone_is_not_measured(tmp_path: Path) -> None:
    assert PrecisionStage("auto", parameters=4_999_999, folder=tmp_path).value == "fp32"
    assert chosen(tmp_path).value is None


def test_what_was_found_before_the_first_job_is_kept_and_neither_measured_nor_told_again(
    make_stage: Make, tmp_path: Path
) -> None:
    told: list[str] = []
    found = PrecisionFinding.of(JobResult("precision", measured=FASTER))
    stage = make_stage(precision=chosen(tmp_path, told, final="bf16", found=found))
    assert kept_precision(tmp_path) == "bf16"
    kept = json.loads((tmp_path / "precision.json").read_text())
    assert kept == {"precision": "bf16", "why": found.why, **FASTER}
    stage.play(honest)
    assert {job.precision for job in stage.jobs} == {"bf16"}
    assert not [job for job in stage.jobs if job.kind == "probe"]
    assert told == []


def test_a_finding_of_an_earlier_process_comes_first(tmp_path: Path) -> None:
    chosen(tmp_path).done(probe_job(0), JobResult("precision", measured=FASTER))
    slower = PrecisionFinding.of(JobResult("precision", measured={**FASTER, "bf16": 3.0}))
    assert slower.precision == "fp32"
    assert chosen(tmp_path, found=slower).value == "bf16"
    assert kept_precision(tmp_path) == "bf16"
