"""A search with a limit on time, from its plan to a process that goes on with it: predictions are for the
precision in which finalists are trained. Which one is faster is made up; all else is real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search

from autopeft.export.package import find_saved
from autopeft.report.search import dry_run_sheets
from autopeft.runs.folder import load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.api import plan, search
from autopeft.search.core.events import SilentReporter
from autopeft.search.execution import runners
from autopeft.search.execution.logged_jobs import handed_out
from autopeft.search.planning import limits, probes
from autopeft.search.planning.resume import prepare_here
from autopeft.training.precision import PrecisionProbe


class Times:
    """What a probe finds here, and what was asked of this machine."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fp32, self.probes, self.measured_in = 3.0, 0, list[str]()
        self._calibrate = limits.calibrate
        patch.setattr(probes, "LARGE", 1)
        patch.setattr(probes, "_LEAST", 0)
        patch.setattr(runners, "probe_precision", self._probe)
        patch.setattr(limits, "calibrate", self._measure)

    def _probe(self, *args: Any) -> PrecisionProbe:
        self.probes += 1
        return PrecisionProbe(self.fp32, 1.0, 0.01)

    def _measure(self, bench: Any, *args: Any, **more: Any) -> Any:
        self.measured_in.append(bench.precision)
        return self._calibrate(bench, *args, **more)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return small_search(
        tmp_path, trials=3, steps=6, baselines="head", workers=0, max_step_time="60s", portfolio=False
    )


class Dies(SilentReporter):
    """Ends the process, as far as the search can tell, with its first trial."""

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        raise RuntimeError("killed")


@pytest.mark.parametrize(("fp32", "found"), [(3.0, "bf16"), (1.0, "fp32")])
def test_a_dry_run_says_which_precision_it_predicts_for(
    times: Times, arguments: dict[str, Any], fp32: float, found: str
) -> None:
    times.fp32, said = fp32, list[str]()
    facts = dict(dry_run_sheets(plan(**arguments, samples=0, notify=said.append), "1")[0].rows)
    assert facts["predictions are for"] == f"trainings in {found} on this machine"
    assert (times.probes, times.measured_in) == (1, [found])
    assert any(f"small recipes in {found} on this machine" in line for line in said)


def test_it_is_found_once_and_kept_to(times: Times, arguments: dict[str, Any]) -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError, match="killed"):
        search(**arguments, reporter=Dies(), notify=said.append)
    run = load_run(arguments["out"])
    kept = json.loads((run.path / "precision.json").read_text())
    assert (kept["precision"], kept["fp32"]) == ("bf16", 3.0)
    assert said.count(kept["why"]) == 1
    times.fp32 = 1.0  # what another probe would find
    found = search(resume=run.path)
    assert found.precision == run.result()["precision"] == find_saved(run.path).card.precision == "bf16"
    jobs = [entry.job for entry in handed_out(run)]
    assert {job.kind for job in jobs} >= {"trial", "confirm", "baseline", "test"}
    assert {job.precision for job in jobs} == {"bf16"}
    prepare_here(run)
    assert (times.probes, times.measured_in) == (1, ["bf16"] * 3)
