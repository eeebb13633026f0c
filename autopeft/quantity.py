"""Quantities as people write them: `0.5%`, `300k`, `1.2M`, and sizes in bytes: `10GB`, `4GiB`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from autopeft.errors import UsageError

__all__ = ["Quantity", "parse_bytes", "parse_quantity"]

_PATTERN = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d{1,2})?)\s*(?P<unit>%|[kKmM]?)\s*")
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_MOST_BITS = 13_000  # some 3,900 digits: Python writes no number of more than 4,300 out


@dataclass(frozen=True)
class Quantity:
    """A number of parameters, absolute or as a share of a whole.

    `value` is a count when `share` is false and a fraction (0.005 for `0.5%`) when it is true. Exact
    decimals are kept, so that `0.1%` of a whole never loses a parameter to binary rounding.
    """

    value: Decimal
    share: bool
    text: str

    def of(self, whole: int) -> int:
        """The absolute count, rounded down; a share is taken of `whole`."""
        exact = self.value * whole if self.share else self.value
        return int(exact.to_integral_value(ROUND_FLOOR))

    def __str__(self) -> str:
        return self.text


def parse_quantity(value: str | int | float) -> Quantity:
    """Read `0.5%`, `300k`, `1.2M` or a plain count.

    Raises:
        UsageError: `value` is none of these, is zero or negative, is a share above 100 %, or a number of
            thousands of digits.
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise UsageError(
            "A number of thousands of digits is not a quantity; no model has so many parameters."
        )
    text = str(value)
    match = _PATTERN.fullmatch(text) if not isinstance(value, bool) else None
    if match is None:
        raise UsageError(
            f"{text!r} is not a quantity; write a share such as '0.5%' or a count such as '300k' or '1.2M'."
        )
    number, unit = Decimal(match["number"]), match["unit"].lower()
    share = unit == "%"
    exact = number / 100 if share else number * _UNITS[unit]
    if exact <= 0:
        raise UsageError(f"A quantity must be positive, but got {text!r}.")
    if share and exact > 1:
        raise UsageError(
            f"A share is at most 100%, but got {text!r}; write a count such as '300k' for absolute sizes."
        )
    if not share and exact != exact.to_integral_value():
        instead = f"for a share write '{number}%'" if number <= 100 else f"write '{round(exact)}'"
        raise UsageError(f"{text!r} is not a whole number of parameters; {instead}.")
    return Quantity(exact, share, text.strip())


_BYTES = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?:(?P<unit>[kKmMgGtT])(?P<binary>i?))?[bB]?\s*")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Read `10GB`, `500 MB`, `4GiB` or a plain number of bytes, rounded down; `0` is allowed. GB are powers
    of 1,000 and GiB powers of 1,024.

    Raises:
        UsageError: `text` is none of these.
    """
    match = _BYTES.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a size; write one such as '10GB' or '500MB', or '0' for none.")
    power = _POWERS[(match["unit"] or "").lower()]
    return int(Decimal(match["number"]) * (1024 if match["binary"] else 1000) ** power)
