"""The labels that a model's configuration names, as a saved hybrid brings them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from autopeft.errors import DataError, UsageError
from autopeft.foreign import file_in, read_table_in
from autopeft.hybrid.store import MANIFEST

__all__ = ["nameless", "read_labels"]

_MADE_UP = re.compile(r"LABEL_\d+")
_SHOWN, _DIGITS = 5, 9


def nameless(labels: Mapping[int, str] | tuple[str, ...]) -> bool:
    """Whether labels have the names alone that transformers gives to those without any (`LABEL_0`)."""
    names = labels.values() if isinstance(labels, Mapping) else labels
    return all(_MADE_UP.fullmatch(name) for name in names)


def read_labels(folder: Path, expected: int | None) -> tuple[dict[int, str], str | None] | None:
    """The labels, by index, and the problem type of the model that a saved hybrid was on; `None` where it had
    none.

    Args:
        folder: the saved hybrid's.
        expected: how many labels the model has that the hybrid is to be loaded on, where it says so.

    Raises:
        DataError: the manifest is damaged, or the number of labels is another.
    """
    try:
        if file_in(folder, MANIFEST) is None:
            return None
        config = read_table_in(folder, MANIFEST).get("config")
    except UsageError as error:
        raise DataError(str(error)) from error
    saved = config if isinstance(config, dict) else {}
    names, problem = saved.get("id2label"), saved.get("problem_type")
    sound = isinstance(names, dict) and all(
        k.isdecimal() and len(k) <= _DIGITS and isinstance(v, str) for k, v in names.items()
    )
    if not sound or not isinstance(problem, str | None):
        raise DataError(
            f"{folder / MANIFEST} is not what a saved hybrid has: {names!r:.80} are no names of labels."
        )
    if not names:
        return None
    count = len(names)
    if expected is not None and count != expected:
        shown = ", ".join(list(names.values())[:_SHOWN]) + (", …" if count > _SHOWN else "")
        raise DataError(
            f"{folder} has a head of {count} labels ({shown}), and the model one of {expected}; load the "
            f"backbone with num_labels={count}."
        )
    return {int(index): name for index, name in names.items()}, problem
