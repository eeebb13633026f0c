"""Rows that are handed over as objects: `datasets.Dataset`, `DatasetDict`, pandas `DataFrame`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.errors import DataError, TaskError
from autopeft.tasks.images import ImageFile
from autopeft.tasks.table import Table

__all__ = ["class_names", "describe", "splits_of", "tables_in", "tables_of"]

_TAKEN = "a `datasets.Dataset`, a `DatasetDict` or a pandas `DataFrame`"
_SPLIT_OF = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}
_SPLIT_OF |= {"dev": "validation", "validation_matched": "validation", "test": "test"}
_HIDDEN = (-1, "-1", "-1.0")  # a label that a leader board hides, in classes, numbers (STS-B) or a CSV


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
        names = [str(name) for name in data.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{where} names a column twice: {', '.join(map(repr, twice))}.")
        columns = {}
        for i, name in enumerate(names):
            series = data.iloc[:, i]
            # Plain Python values; pandas' marks for missing ones become `None`.
            columns[name] = [
                None if missing else value.item() if isinstance(value, np.generic) else value
                for value, missing in zip(series.astype(object).tolist(), series.isna().tolist(), strict=True)
            ]
        return {"train": Table(where, columns, {})}
    raise TaskError(
        f"A task is a name, a path, {_TAKEN}, but got {type(data).__module__}.{type(data).__qualname__}."
    )


def describe(data: Any) -> str:
    """What an object is, in a few words: its type and rows, or a loaded task's name."""
    name = type(data).__name__
    if name == "Task":
        return f"Task {data.name!r}"
    if isinstance(data, Mapping):
        rows = ", ".join(
            f"{split}: {len(part):,}" for split, part in data.items() if hasattr(part, "__len__")
        )
        return f"{name} ({rows} rows)"
    return f"{name} ({len(data):,} rows)" if hasattr(data, "__len__") else name


def tables_of(loaded: Mapping[str, Any], where: str) -> dict[str, Table]:
    """The splits of a `datasets.DatasetDict` as tables; see `splits_of`.

    Images stay as they are stored: bytes, or a file, which whoever made the data set in this process had. A
    format that a data set has been given for training (`with_format("torch")`) says nothing of its rows.
    """
    import datasets

    found = {}
    for name, split in loaded.items():
        if str(name) not in _SPLIT_OF:
            continue
        split = split.with_format(None)
        images = [column for column, kind in split.features.items() if isinstance(kind, datasets.Image)]
        for column in images:
            split = split.cast_column(column, datasets.Image(decode=False))
        columns = {column: split[column][:] for column in split.column_names}
        for column in images:
            columns[column] = [
                ImageFile.of_file(Path(value["path"]))
                if value is not None and value["bytes"] is None and value["path"] is not None
                else value
                for value in columns[column]
            ]
        found[str(name)] = Table(f"{where} ({name})", columns, class_names(split.features))
    return splits_of(found, where, list(map(str, loaded)))


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each column of classes, or of lists of them, among `datasets.Features`."""
    kinds = {column: getattr(kind, "feature", kind) for column, kind in features.items()}
    return {column: tuple(kind.names) for column, kind in kinds.items() if hasattr(kind, "names")}


def splits_of(tables: Mapping[str, Table], where: str, names: list[str] | None = None) -> dict[str, Table]:
    """The tables of train, validation and test, in this order, among those of any name.

    A test split whose labels are all hidden (-1) is left out. `names` are those of all splits that there are.

    Raises:
        DataError: there is no train split.
    """
    found: dict[str, Table] = {}
    for name, table in tables.items():
        key = _SPLIT_OF.get(name)
        labels = [c for c in table.columns if c in table.label_names or c.lower() in {"label", "labels"}]
        hidden = any(len(table) and all(v in _HIDDEN for v in table.columns[column]) for column in labels)
        if key is not None and not (key == "test" and hidden):
            found.setdefault(key, table)
    if "train" not in found:
        told = ", ".join((names or list(tables))[:12])
        raise DataError(f"{where} has no train split; it has {told}.")
    return {key: found[key] for key in ("train", "validation", "test") if key in found}
