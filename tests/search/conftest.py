from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.searching import EFFORT, Events, MemoryVault, Stage, lora, to_lora

from autopeft.search.controller.controller import Director
from autopeft.search.core.jobs import TrialRecord
from autopeft.search.effort import Effort
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.selection.baselines import Baseline
from autopeft.search.space.bound import Parameter


@pytest.fixture
def make_stage(tmp_path: Path) -> Callable[..., Stage]:
    def make(effort: Effort = EFFORT, ranks: tuple[int, ...] = tuple(range(1, 65)), **more: Any) -> Stage:
        study = SearchStudy(
            tmp_path / "journal.log",
            [Parameter("rank", "categorical", ranks, sizes=ranks)],
            to_lora,
            sampler="random",
            seed=0,
            trials=effort.trials,
            rungs=more.pop("rungs", Rungs.of(effort.steps, "none")),
            objectives=more.pop("objectives", 1),
        )
        rivals = more.pop(
            "rivals",
            [Baseline("rival", tuple(lora(100, lr).to_dict() for lr in (1e-3, 2e-3)), {"deployed": 5})],
        )
        events, vault = Events(), MemoryVault()
        records: list[TrialRecord] = []
        director = Director(study, effort, rivals, events, vault, records.append, seed=0, workers=2, **more)
        return Stage(director, events, vault, records)

    return make
