"""Quantities as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.counting import Budget
from autopeft.errors import UsageError
from autopeft.quantity import parse_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "of_million"),
    [
        ("0.5%", 5_000),
        ("100%", 1_000_000),
        ("300k", 300_000),
        ("1.2M", 1_200_000),
        ("7", 7),
        (" 2 K ", 2_000),
        ("1e3", 1_000),
    ],
)
def test_of(text: str, of_million: int) -> None:
    assert parse_quantity(text).of(1_000_000) == of_million


@pytest.mark.parametrize(
    "text", ["", "%", "k", "1,5%", "0", "0%", "-1", "101%", "1.5", "1e999", "inf", "5 %%", True]
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_quantity(text)


@pytest.mark.parametrize("number", [10**5000, -(10**5000)], ids=["positive", "negative"])
def test_numbers_beyond_any_model(number: int) -> None:
    """Python writes no number of more than 4,300 digits out, in messages either."""
    with pytest.raises(UsageError, match="thousands of digits"):
        parse_quantity(number)
    with pytest.raises(UsageError, match="thousands of digits"):
        Budget.parse(number)


@given(whole=st.integers(1, 10**12), numerator=st.integers(1, 10**6))
def test_a_share_is_the_exact_floor(whole: int, numerator: int) -> None:
    text = f"{numerator / 10**4:.4f}%"
    assert parse_quantity(text).of(whole) == whole * numerator // 10**6


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GB", 10**10),
        ("500 MB", 5 * 10**8),
        ("4GiB", 4 << 30),
        ("2Ki", 2048),
        ("7", 7),
        ("0", 0),
        ("1.5kB", 1500),
    ],
)
def test_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1iB", "-1MB", "1.5e3MB", "1MBB"])
def test_bytes_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)
