from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import UsageError
from autopeft.hybrid.schedule import SCHEDULES, RecipeSchedule, factor, group_factor
from autopeft.recipe import TrainingSection


def test_linear_by_hand() -> None:
    rates = [factor("linear", step, 8, 3 / 8) for step in range(8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_by_hand() -> None:
    rates = [factor("cosine", step, 4, 0) for step in range(4)]
    assert rates == pytest.approx([1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2])


def test_constant_stays_after_the_warm_up() -> None:
    assert [factor("constant", step, 4, 1 / 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@given(st.sampled_from(SCHEDULES), st.integers(1, 400), st.floats(0, 1))
def test_rises_to_one_then_never_rises_and_never_is_zero(name: str, total: int, share: float) -> None:
    warmup = min(int(share * total), total - 1)
    rates = [factor(name, step, total, share) for step in range(total)]
    assert rates[warmup] == 1.0 == max(rates)
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    assert min(rates) > 0


def test_warm_up_is_a_share_rounded_down() -> None:
    rates = [
        [factor("constant", i, n, share) for i in range(n)] for share, n in ((0.06, 60), (0.06, 10), (1, 10))
    ]
    assert [sum(rate < 1 for rate in rising) for rising in rates] == [3, 0, 9]


def test_unknown_schedule() -> None:
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        factor("cosinus", 0, 10, 0)


def _rates(training: TrainingSection, steps: int, begin: int = 0) -> list[float]:
    """Rates of a group of 0.5 at every step from `begin` on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = RecipeSchedule.over(optimizer, training)
    RecipeSchedule.begin(scheduler, begin, steps)
    found = []
    for _ in range(begin, steps):
        found.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == found[-1:]
        optimizer.step()
        scheduler.step()
    return found


@given(st.sampled_from(SCHEDULES), st.integers(1, 30), st.floats(0, 1))
def test_a_scheduler_has_the_recipe_s_rates_at_every_step(name: str, total: int, share: float) -> None:
    training = TrainingSection(schedule=name, warmup=share)  # type: ignore[arg-type]
    expected = [0.5 * factor(name, step, total, share) for step in range(total)]
    assert _rates(training, total) == pytest.approx(expected)
    assert _rates(training, total, total // 2) == pytest.approx(expected[total // 2 :])


def test_a_schedule_of_unknown_length_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = RecipeSchedule.over(optimizer, TrainingSection())
    optimizer.step()
    with pytest.raises(UsageError, match="for_trainer"):
        scheduler.step()


@pytest.mark.parametrize(("meant_for", "times"), [(0, 1.0), (3, 1.0), (4, 1.0), (16, 2.0), (36, 3.0)])
def test_a_group_may_have_a_schedule_of_its_own(meant_for: int, times: float) -> None:
    """And a rate that is meant for longer trainings, which is higher in this one of 4 steps."""
    own = {"lr": 0.1, "schedule": "constant", "warmup": 0.0, "meant_for": meant_for}
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5},
        {"params": [torch.nn.Parameter(torch.zeros(1))], **own},
    ]
    training = TrainingSection(schedule="linear", warmup=0.25)
    optimizer = torch.optim.SGD(groups)
    scheduler = RecipeSchedule.over(optimizer, training)
    RecipeSchedule.begin(scheduler, 0, 4)
    seen = []
    for step in range(4):
        rates = [group["lr"] for group in optimizer.param_groups]
        seen.append(rates)
        factors = [group_factor(group, training, step, 4) for group in optimizer.param_groups]
        assert rates == pytest.approx([0.5 * factors[0], 0.1 * factors[1]])
        optimizer.step()
        scheduler.step()
    assert [rates[1] for rates in seen] == [0.1 * times] * 4
    assert [rates[0] for rates in seen] == pytest.approx([0.25, 0.5, 1 / 3, 1 / 6])
