"""Names of classes in lists, as texts or as whole numbers, which stand for names that the format notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autopeft.tasks.table import is_unicode

__all__ = ["PRINTED", "is_printed", "name_of", "problem_of_names"]

PRINTED = "a list that was printed as text (save lists as JSON lines or Parquet)"
"""What is wrong with a text that `is_printed`."""
_QUOTES, _NUMBERS = "'\"", set("-0123456789, \n")
_LARGEST = 10**18


def problem_of_names(values: Sequence[Any], names: Sequence[str] | None, one: str) -> str | None:
    """What is wrong with a list of names, in a few words; `None` where nothing is.

    Args:
        names: all that there are, in order of their numbers; `None` where they are not known.
        one: what a name is called: a `label`, a `tag`.
    """
    numbers = [_whole(value) for value in values]
    pairs = list(zip(numbers, values, strict=True))
    if not all(n is not None or (isinstance(v, str) and v.strip()) for n, v in pairs):
        return f"a {one} that is neither text nor a whole number"
    if not all(is_unicode(value) for value in values if isinstance(value, str)):
        return f"a {one} that is not Unicode"
    if names is None or all(v in names if n is None else 0 <= n < len(names) for n, v in pairs):
        return None
    return f"a {one} that is none of its {len(names)} {one}s"


def is_printed(value: Any) -> bool:
    """Whether a value is a text as lists of texts or whole numbers are printed (`['a', 'b']`). Pandas writes
    them so to a CSV."""
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    inside = text[1:-1].strip()
    quoted = len(inside) > 1 and inside[0] in _QUOTES and inside[-1] in _QUOTES
    return quoted or _NUMBERS.issuperset(inside)


def name_of(value: Any, names: Sequence[str] | None) -> str:
    """The name that a value without a problem stands for."""
    number = _whole(value)
    if number is None:
        return str(value).strip()
    return str(number) if names is None else names[number]


def _whole(value: Any) -> int | None:
    """A value as a whole number; `None` where it is none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        return None
    return int(value) if abs(int(value)) < _LARGEST else None
