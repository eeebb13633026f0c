from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from autopeft.search.core.jobs import JobResult
from autopeft.search.selection.contender import RepeatedRuns
from autopeft.search.selection.non_inferiority import (
    NonInferiority,
    SeedNoise,
    non_inferiority,
    seed_noise,
)
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.scored import ScoredSplit

ROWS = ScoredSplit("accuracy", 400)


def repeated(scores: Sequence[float], parts: Sequence[Sequence[float]] = ()) -> RepeatedRuns:
    found = RepeatedRuns("r", "confirm")
    jobs = found.final_jobs("j", range(len(scores)), 1, ("select",), keep=False)
    for i, (job, score) in enumerate(zip(jobs, scores, strict=True)):
        values = tuple(parts[i]) if parts else ()
        found.take(JobResult(job.id, {"select": score}, select_values=values))
    return found


def seen(mine: RepeatedRuns, other: RepeatedRuns, noise: SeedNoise, margin: float = 0.01) -> NonInferiority:
    found = non_inferiority(mine, other, noise, ROWS, margin)
    assert found is not None
    return found


def test_seeds_of_all_recipes_give_one_variance() -> None:
    assert seed_noise([[0.5, 0.7], [0.1, 0.2, 0.3], [0.9]]) == SeedNoise(pytest.approx(0.04 / 3), 3)
    assert seed_noise([[0.5], []]) == SeedNoise(0.0, 0)


def test_the_better_a_recipe_looks_the_more_probable_it_is_within_the_margin() -> None:
    noise, other = SeedNoise(1e-4, 8), repeated([0.8, 0.8, 0.8])
    found = [seen(repeated([s] * 3), other, noise) for s in (0.70, 0.78, 0.79, 0.80, 0.82)]
    assert [f.difference for f in found] == pytest.approx([-0.1, -0.02, -0.01, 0.0, 0.02])
    within = [f.within for f in found]
    assert within == sorted(within)
    assert within[0] < 0.35 < 0.5 <= within[2] < within[3] < 0.8 < within[4]


def test_more_margin_and_less_noise_make_it_surer() -> None:
    mine, other = repeated([0.80] * 3), repeated([0.80] * 3)
    small, large = SeedNoise(1e-6, 8), SeedNoise(1e-3, 8)
    assert seen(mine, other, small).within > seen(mine, other, large).within
    assert seen(mine, other, large, 0.03).within > seen(mine, other, large, 0.01).within


def test_rows_that_both_answer_alike_are_no_noise() -> None:
    """Twenty groups that differ much from each other, and not from side to side: what is left is that further
    rows may differ."""
    groups = list(np.linspace(0.6, 1.0, 20))
    paired = seen(repeated([0.8] * 3, [groups] * 3), repeated([0.8] * 3, [groups] * 3), SeedNoise(1e-6, 8))
    alone = seen(repeated([0.8] * 3), repeated([0.8] * 3), SeedNoise(1e-6, 8))
    assert paired.within > 0.95 > 0.9 > alone.within


def test_scores_that_do_not_vary_at_all_leave_what_further_rows_may_show() -> None:
    groups = [[0.8] * 20] * 2
    noise = SeedNoise(0.0, 2)
    alike = seen(repeated([0.8] * 2, groups), repeated([0.8] * 2, groups), noise)
    few = replace(ROWS, rows=40)
    assert 0.9 < alike.within < 1
    fewer = non_inferiority(repeated([0.8] * 2, groups), repeated([0.8] * 2, groups), noise, few, 0.01)
    assert fewer is not None
    assert 0.5 < fewer.within < 0.8
    lower = seen(repeated([0.78] * 2, [[0.78] * 20] * 2), repeated([0.8] * 2, groups), noise)
    assert lower.within < 0.05


def test_with_one_seed_the_rows_say_how_much_seeds_may_do() -> None:
    found = seen(repeated([0.8]), repeated([0.8]), seed_noise([[0.8], [0.8]]))
    assert 0.5 < found.within < 0.9


def test_without_a_score_nothing_is_known() -> None:
    assert non_inferiority(repeated([]), repeated([0.5]), SeedNoise(0.1, 1), ROWS, 0.01) is None


def test_where_nothing_tells_how_far_rows_move_a_score_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metric = Metric("own", -math.inf, math.inf, "", lambda p, y: 0.0)
    monkeypatch.setattr("autopeft.tasks.scored.get_metric", lambda name: metric)
    rows, noise = ScoredSplit("own", 5), SeedNoise(0.1, 4)
    assert non_inferiority(repeated([0.8] * 3), repeated([0.8] * 3), noise, rows, 0.01) is None


def test_it_is_right_as_often_as_it_says() -> None:
    """Recipes that differ as the prior has it: of those that it gives a probability, so many are within the
    margin."""
    random, seed, margin = np.random.default_rng(0), 0.01, 0.01
    said, true = [], []
    for _ in range(1500):
        gap = random.normal(0, np.sqrt(2) * seed)
        sides = [0.8 + gap + random.normal(0, seed, 3), 0.8 + random.normal(0, seed, 3)]
        rows = random.normal(0, 0.05, 100)
        parts = [[list(rows + s) for s in side] for side in sides]
        mine, other = (repeated(list(s), p) for s, p in zip(sides, parts, strict=True))
        said.append(seen(mine, other, SeedNoise(seed**2, 50), margin).within)
        true.append(gap > -margin)
    sure = np.array(said) >= 0.8
    assert np.mean(np.array(true)[sure]) == pytest.approx(np.mean(np.array(said)[sure]), abs=0.03)
    assert np.mean(true) == pytest.approx(np.mean(said), abs=0.03)
