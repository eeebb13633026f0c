"""Rows that are handed over as objects: `datasets.Dataset`, `DatasetDict`, pandas `DataFrame`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autopeft.errors import DataError, TaskError
from autopeft.tasks.files import tables_of
from autopeft.tasks.table import Table

__all__ = ["describe", "tables_in"]

_TAKEN = "a `datasets.Dataset`, a `DatasetDict` or a pandas `DataFrame`"


def tables_in(data: Any) -> dict[str, Table]:
    """The tables of an object by split, as of a file or a folder in the hub's layout.

    Raises:
        TaskError: it is of another type.
        DataError: a data set without a train split, or a column name that stands twice.
    """
    import datasets
    import pandas

    where = describe(data)
    if isinstance(data, datasets.Dataset):
        return tables_of({"train": data}, where)
    if isinstance(data, datasets.DatasetDict):
        return tables_of(data, where)
    if isinstance(data, pandas.DataFrame):
        return {"train": _of_frame(data, where)}
    raise TaskError(
        f"A task is a name, a path, {_TAKEN}, but got {type(data).__module__}.{type(data).__qualname__}."
    )


def describe(data: Any) -> str:
    """What an object is, in a few words: its type and rows."""
    name = type(data).__name__
    if isinstance(data, Mapping):
        rows = ", ".join(
            f"{split}: {len(part):,}" for split, part in data.items() if hasattr(part, "__len__")
        )
        return f"{name} ({rows} rows)"
    return f"{name} ({len(data):,} rows)" if hasattr(data, "__len__") else name


def _of_frame(frame: Any, where: str) -> Table:
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where} names a column twice: {', '.join(map(repr, twice))}.")
    columns = {name: _values(frame.iloc[:, i]) for i, name in enumerate(names)}
    return Table(where, columns, {})


def _values(series: Any) -> list[Any]:
    """A column's values as plain Python ones; pandas' marks for missing values become `None`."""
    missing = series.isna().tolist()
    found = series.astype(object).tolist()
    return [
        None if gone else value.item() if isinstance(value, np.generic) else value
        for value, gone in zip(found, missing, strict=True)
    ]
