from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.searching import EFFORT, Events, MemoryCheckpoints, Stage, lora, to_lora

from autopeft.effort import Effort
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.controller import Controller
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.selection.baselines import Baseline
from autopeft.search.space.parameters import Parameter
from autopeft.search.strategies.trials import Trials


@pytest.fixture
def make_stage(tmp_path: Path) -> Callable[..., Stage]:
    def make(effort: Effort = EFFORT, ranks: tuple[int, ...] = tuple(range(1, 65)), **more: Any) -> Stage:
        study = SearchStudy(
            tmp_path / "journal.log",
            [Parameter("rank", "categorical", ranks, sizes=ranks)],
            more.pop("repair", to_lora),
            sampler=more.pop("sampler", "random"),
            seed=0,
            trials=effort.trials,
            rungs=more.pop("rungs", Rungs.of(effort.steps, "none")),
            objectives=more.pop("objectives", 1),
            cost=more.pop("cost", "deployed"),
        )
        baselines = more.pop(
            "baselines",
            [
                Baseline(
                    "baseline",
                    tuple(lora(100, lr).to_dict() for lr in (1e-3, 2e-3)),
                    {"deployed": 5},
                    kind="middle",  # it is compared with, and cannot win
                )
            ],
        )
        events, checkpoints = Events(), more.pop("checkpoints", None) or MemoryCheckpoints()
        records: list[TrialRecord] = []
        strategy = Trials(study, effort, checkpoints, seed=0)
        controller = Controller(
            strategy, effort, baselines, events, checkpoints, records.append, seed=0, workers=2, **more
        )
        return Stage(controller, events, checkpoints, records)

    return make
