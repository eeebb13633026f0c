"""Searches on a surrogate: every step is paid for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from lib.replay import replay

from autopeft.search.execution.local_executor import LocalExecutor
from autopeft.search.optimization.successive_halving import Rungs


def test_a_replay_without_rungs_trains_every_recipe_to_the_end(ground: Any, noise: float) -> None:
    found = replay(ground, sampler="random", seed=1, trials=15, rungs=Rungs.of(80))
    assert [t.steps for t in found] == [80 * (i + 1) for i in range(15)]
    assert len({t.hash for t in found}) == 15
    assert all(abs(t.measured - t.true) < 6 * noise for t in found)
    assert found == replay(ground, sampler="random", seed=1, trials=15, rungs=Rungs.of(80))
    assert found != replay(ground, sampler="random", seed=2, trials=15, rungs=Rungs.of(80))


def test_a_part_of_a_replay_is_no_replay(ground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal lets a search end as if it had come to its end."""
    plain = LocalExecutor.run_jobs

    def stopped(self: Any, source: Any, *others: Any) -> None:
        complete, ended = source.complete, list[Any]()

        def counted(result: Any) -> None:
            ended.append(result)
            complete(result)
            if len(ended) == 3:
                source.interrupt()

        source.complete = counted
        plain(self, source, *others)

    monkeypatch.setattr(LocalExecutor, "run_jobs", stopped)
    with pytest.raises(KeyboardInterrupt):
        replay(ground, sampler="random", seed=1, trials=15, rungs=Rungs.of(80))


def test_a_replay_with_rungs_pays_for_the_steps_that_were_trained(ground: Any) -> None:
    rungs = Rungs.of(80, first=40, eta=2)
    found = replay(ground, sampler="random", seed=1, trials=16, rungs=rungs, objectives=2)
    # Sixteen to step 40, and 40 more for each that went on.
    assert 8 <= len(found) < 16
    assert found[-1].steps <= 16 * 40 + len(found) * 40
    assert all(a.steps < b.steps for a, b in pairwise(found))
    assert all(t.steps % 40 == 0 for t in found)


def test_the_best_is_at_least_what_any_search_finds(ground: Any) -> None:
    best = ground.best(draws=60, climbs=2, patience=30)
    found = replay(ground, sampler="tpe", seed=0, trials=12, rungs=Rungs.of(80))
    assert best >= max(t.true for t in found) - 0.02
