"""Which rows are copies of one another: what they ask has one normal form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Input", "normal_form", "text_ids"]

Input = tuple[str, ...]
"""The texts of one row that a model reads (see `Schema.inputs_of`)."""

_SPACE = re.compile(r"[\s\u200b\ufeff]+")  # with the spaces of no width, which are no white space to Python
_STOPS = " .。"


def normal_form(text: str) -> str:
    """A text without what copies differ by: white space, case and full stops at its end. Characters that
    Unicode calls compatible, such as full-width letters, become one. A text of full stops alone stays.

    Source: compatibility caseless matching (Unicode Standard, section 3.13).
    """
    plain = _SPACE.sub(" ", unicodedata.normalize("NFKD", text).casefold()).strip()
    return plain.rstrip(_STOPS) or plain


def text_ids(inputs: Iterable[Input]) -> NDArray[np.int64]:
    """Which of the different texts each row has, (rows,); copies have the same. Texts are numbered from 0 in
    the order in which they come first."""
    known: dict[Input, int] = {}
    forms = (tuple(map(normal_form, texts)) for texts in inputs)
    return np.array([known.setdefault(form, len(known)) for form in forms], dtype=np.int64)
