from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.report.text import duration, limits_text, mean_sd, number, percent, score


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_percent_never_reads_higher_than_the_share(part: int, whole: int) -> None:
    """A hybrid that is under the budget must not be shown at or above it by rounding."""
    share = part / whole
    shown = float(percent(share).removesuffix(" %"))
    assert shown <= share * 100 + 1e-8
    assert share * 100 - shown < 1.1e-3


def test_percent_keeps_what_is_exact() -> None:
    assert percent(0.005) == "0.500 %"
    assert percent(113_566 / 22_713_216) == "0.499 %"
    assert percent(None) == "–"
    assert percent(math.nan) == "–"


def test_mean_sd_is_the_sample_standard_deviation() -> None:
    assert mean_sd([0.8, 0.9]) == "0.8500 ± 0.0707"


def test_a_single_seed_shows_no_deviation() -> None:
    assert mean_sd([0.8]) == "0.8000 (one seed)"
    assert mean_sd([]) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_number_and_score() -> None:
    assert number(5_451_776) == "5,451,776"
    assert number(math.inf) == "unbounded"
    assert number(None) == "–"
    assert score(math.nan) == "–"
    assert score(0.81234) == "0.8123"


def test_limits() -> None:
    assert limits_text((0, 113_566)) == "at most 113,566"
    assert limits_text((1_000, 113_566)) == "1,000 to 113,566"
