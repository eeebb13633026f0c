"""The precision of a search's trainings, before any of them, and what a run folder keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search

from autopeft.assets.precision import PRECISIONS
from autopeft.effort import LARGE
from autopeft.errors import UsageError
from autopeft.resources.measuring import Bench
from autopeft.search.execution import runners, worker
from autopeft.search.planning import limits, probes
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.search.planning.probes import final_precision, kept_precision, known_precision
from autopeft.training.precision import PrecisionProbe


@pytest.mark.parametrize(
    ("asked", "trials", "parameters", "found"),
    [
        ("bf16", "fp32", 1, "bf16"),
        ("fp32", "bf16", LARGE, "fp32"),
        ("auto", "bf16", LARGE - 1, "fp32"),
        ("auto", "bf16", LARGE, "bf16"),
        ("auto", "fp32", LARGE, "fp32"),
        ("auto", "auto", LARGE, "fp32"),
        ("auto", None, LARGE, "fp32"),
    ],
)
def test_it_is_that_of_the_trials_for_large_backbones(
    asked: str, trials: str | None, parameters: int, found: str
) -> None:
    assert final_precision(asked, trials, parameters) == found


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_was_asked_for_is_known(asked: str) -> None:
    assert known_precision(asked, LARGE) == asked


def test_a_small_backbone_needs_no_probe() -> None:
    assert known_precision("auto", 4_999_999) == "fp32"
    assert known_precision("auto", 5_000_000) is None


class Stop(Exception):  # noqa: N818
    """Ends the planning where measurements would begin."""


class Machine:
    """A machine on which bf16 is fast, where all backbones count as large. It stops what would be measured.

    Attributes:
        probes: plans of the probes that ran.
        measured_in: precisions of the backbones that would have been measured.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.speed: float | Exception = 3.0
        self.probes, self.measured_in = list[Any](), list[str]()
        self.said: list[str] = []
        patch.setattr(probes, "LARGE", 1)
        patch.setattr(probes, "_LEAST", 0)
        patch.setattr(runners, "probe_precision", self._probe)
        patch.setattr(limits, "calibrate", self._calibrate)

    def _probe(self, backbone: Any, data: Any, plan: Any) -> PrecisionProbe:
        self.probes.append(plan)
        for name, dtype in PRECISIONS.items():
            assert next(backbone(name).base_model.parameters()).dtype == dtype
        if isinstance(self.speed, Exception):
            raise self.speed
        return PrecisionProbe(self.speed, 1.0, 0.01)

    def _calibrate(self, bench: Bench, *args: Any, **more: Any) -> None:
        assert worker._LOADED == {}, "the probe's backbones take memory while others are measured"
        self.measured_in.append(bench.precision)
        raise Stop

    def plan(self, arguments: dict[str, Any], kept: str | None = None) -> None:
        with pytest.raises(Stop):
            prepare(SearchArguments(**arguments), self.said.append, None, kept)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return small_search(tmp_path, max_step_time="10s", seed=3)


@pytest.mark.parametrize(
    ("speed", "found", "says"),
    [
        (3.0, "bf16", "in bf16: on this backbone bf16 is 3.0 times as fast"),
        (1.0, "fp32", "in fp32: on this backbone bf16 is 1.0 times as fast"),
        (ValueError("boom."), "fp32", "in fp32: measuring bf16 failed (ValueError: boom"),
    ],
)
def test_predictions_are_for_what_the_probe_finds(
    machine: Machine, limited: dict[str, Any], speed: float | Exception, found: str, says: str
) -> None:
    machine.speed = speed
    machine.plan(limited)
    assert machine.measured_in == [found]
    assert [plan.seed for plan in machine.probes] == [3]
    assert machine.said[0].startswith("Timing bf16 against fp32")
    assert f"Recipes are tried {says}" in machine.said[1]


def test_a_cost_of_steps_is_predicted_for_it_too(machine: Machine, limited: dict[str, Any]) -> None:
    machine.plan({**limited, "max_step_time": None, "objective": "score,cost"})
    assert machine.measured_in == ["bf16"]


@pytest.mark.parametrize("kept", ["fp32", "bf16"])
def test_a_search_that_goes_on_predicts_for_what_it_found(
    machine: Machine, limited: dict[str, Any], kept: str
) -> None:
    machine.speed = 3.0 if kept == "fp32" else 1.0
    machine.plan(limited, kept)
    assert machine.measured_in == [kept]
    assert machine.probes == []


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "bf16"}, "bf16"),
        ({"final_precision": "fp32"}, "fp32"),
        ({"final_precision": "bf16"}, "bf16"),
    ],
)
def test_the_probe_is_left_to_the_workers_where_predictions_do_not_follow_from_it(
    machine: Machine, limited: dict[str, Any], asked: dict[str, str], found: str
) -> None:
    machine.plan({**limited, **asked})
    assert machine.measured_in == [found]
    assert machine.probes == []


def test_the_probe_is_left_to_the_workers_where_nothing_is_predicted(
    machine: Machine, limited: dict[str, Any]
) -> None:
    ready = prepare(SearchArguments(**{**limited, "max_step_time": None, "max_file": "1MB"}))
    assert ready.precision is None
    assert machine.probes == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"precision": "fp8"}', '{"precision": []}', "[" * 9000, "\xff"]
)
def test_a_damaged_finding_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "precision.json").write_bytes(text.encode("latin-1"))
    assert kept_precision(tmp_path) is None


def test_a_finding_is_not_read_from_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"precision": "bf16"}')
    run: Any = tmp_path / "run"
    run.mkdir()
    (run / "precision.json").symlink_to(tmp_path / "other.json")
    with pytest.raises(UsageError, match="leads out of its folder"):
        kept_precision(run)
