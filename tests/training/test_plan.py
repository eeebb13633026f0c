from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autopeft.errors import UsageError
from autopeft.training.plan import TrainingPlan


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "`steps` must be an integer of at least 1, but got steps=0"),
        ({"steps": True}, "steps=True"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"patience": 2}, "set `eval_every`"),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        TrainingPlan(**{"steps": 5, **values})


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(UsageError) as error:
        TrainingPlan(steps=0, batch_size=-1)
    assert all(f"`{name}`" in str(error.value) for name in ("steps", "batch_size"))


def test_replacing_a_value_checks_again() -> None:
    with pytest.raises(UsageError):
        replace(TrainingPlan(steps=5), steps=0)


def test_micro_rows_never_exceed_the_batch() -> None:
    assert TrainingPlan(steps=1, batch_size=8).micro_rows == 8
    assert TrainingPlan(steps=1, batch_size=8, micro_batch=3).micro_rows == 3
    assert TrainingPlan(steps=1, batch_size=8, micro_batch=32).micro_rows == 8


def test_a_micro_batch_bounds_the_rows_of_an_evaluation() -> None:
    assert TrainingPlan(steps=1).eval_rows == 64
    assert TrainingPlan(steps=1, micro_batch=3).eval_rows == 3
    assert TrainingPlan(steps=1, batch_size=500, micro_batch=200).eval_rows == 64
