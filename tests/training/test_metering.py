"""What a training took. Nothing here asserts how long anything takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.training import encoded_task, tiny_bert

from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.metering import PeakMemory, resident

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")


@LINUX
def test_the_peak_is_that_since_the_meter_was_made() -> None:
    large = torch.ones(50_000_000)
    del large
    peak, before = PeakMemory(CPU), resident()
    assert before is not None
    first = peak.bytes()
    assert first is not None
    assert first < before + 100_000_000, "what was there before does not count"
    large = torch.ones(50_000_000)
    del large
    after = peak.bytes()
    assert after is not None
    assert after > first + 150_000_000


def test_a_trial_tells_what_it_took() -> None:
    recipe = Recipe.from_dict({"layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    plan = TrainingPlan(steps=3, batch_size=8, device="cpu")
    outcome = run_trial(tiny_bert(), recipe, encoded_task(), plan)
    assert len(outcome.train.step_seconds) == 3
    assert outcome.measured["step_time"] == outcome.train.step_time
    assert (
        outcome.train.step_time
        == sorted(outcome.train.step_seconds[1:])[0] / 2 + max(outcome.train.step_seconds[1:]) / 2
    )


@LINUX
def test_memory_is_measured_without_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("another program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert resident() is not None
