"""The precision of what is scored on *test*."""

from __future__ import annotations

import pytest

from autopeft.effort import LARGE
from autopeft.search.planning.precision import final_precision


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
