from __future__ import annotations

import pytest

from autopeft.effort import EFFORTS, LARGE, choose_effort, parse_duration
from autopeft.errors import UsageError


def test_the_default_follows_the_machine() -> None:
    assert choose_effort() == EFFORTS["quick"]
    assert choose_effort(gpu=True) == EFFORTS["normal"]


def test_overrides_win_and_none_does_not() -> None:
    effort = choose_effort("quick", trials=3, steps=None)
    assert (effort.trials, effort.steps) == (3, EFFORTS["quick"].steps)


def test_exact_numbers_lift_the_time_limit_of_quick() -> None:
    assert choose_effort("quick").seconds
    assert choose_effort("quick", trials=12).seconds is None
    assert choose_effort("quick", train_rows=100).seconds


def test_a_large_backbone_on_a_cpu_has_a_quick_search_of_its_own() -> None:
    small, large = choose_effort("quick", parameters=LARGE - 1), choose_effort("quick", parameters=LARGE)
    assert small == EFFORTS["quick"]
    assert large.trials >= 8
    assert large.seconds is not None
    assert large.seconds < 1800
    assert large.batch_size == 16
    assert choose_effort("quick", parameters=LARGE, decoder=True).batch_size == 8
    assert choose_effort("quick", parameters=LARGE - 1, decoder=True) == small
    assert choose_effort("quick", parameters=LARGE, gpu=True) == choose_effort("quick", gpu=True)
    assert choose_effort("normal", parameters=LARGE) == EFFORTS["normal"]
    assert choose_effort("quick", parameters=LARGE, trials=5).trials == 5


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="'thorough'"):
        choose_effort("thorogh")
    with pytest.raises(UsageError, match="at most some thirty years, but got '300000h'"):
        parse_duration("300000h")
    with pytest.raises(UsageError, match="trials=0, steps=-1"):
        choose_effort("quick", trials=0, steps=-1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("5", 300),
        (7, 7),
        (None, None),
    ],
)
def test_durations(text: str | int | None, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1h30", "-3m", "0s", "3 parsecs", "1e99d", 0])
def test_what_is_no_duration(text: str | int) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)
