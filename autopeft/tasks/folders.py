"""A folder of data files in the hub's layout, read with the readers of single files.

The library `datasets` would guess among 27 formats, follow what a README names out of the folder or onto the
network, and end the process on JSON that is nested deeply enough.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from autopeft.errors import DataError
from autopeft.foreign import file_in, in_folder
from autopeft.tasks.class_numbers import numbered_alike
from autopeft.tasks.files import SUFFIXES, read_part, splits_of
from autopeft.tasks.image_folders import by_folder, by_metadata, is_metadata
from autopeft.tasks.listing import is_image_file, listed_files, split_said
from autopeft.tasks.readme import DataCard, card_of
from autopeft.tasks.table import Table

__all__ = ["read_folder"]

_MOST_PARTS = 1_000
_SPLITS = ("train", "validation", "test")
_NO_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
_FAVOURED = (".parquet", ".jsonl", ".json", ".csv")
_CODE = re.compile(r"[-+]?0\d+")
_WHOLE = re.compile(r"[-+]?\d+")


def read_folder(path: Path) -> dict[str, Table]:
    """Read a folder in the hub's layout: `train*`, `validation*`, `test*` files, or as its README says; one
    that holds more images than data files as a folder of images (see `autopeft.tasks.image_folders`).

    Returns the tables by split, `validation` and `test` only where there are such files.

    Raises:
        DataError: there are no data files or far too many, one cannot be read or lies outside the folder, or
            the README is none.
    """
    files, card = _data_files(path), card_of(path)
    if card.folder:
        _check_inside(path, card.folder)
        files = [file for file in files if file.startswith(card.folder.removeprefix("./"))]
    images = [file for file in files if is_image_file(file)]
    files = [file for file in files if not is_image_file(file)]
    if len(images) > sum(not is_metadata(file) for file in files):
        return splits_of(_of_images(path, images, files, card), str(path))
    parts = _named(path, files, card.files) if card.files else _by_name(files)
    parts = _of_one_format(parts)
    if not parts:
        raise DataError(f"The folder {path} has no data files where its README says that they are.")
    if sum(map(len, parts.values())) > _MOST_PARTS:
        raise DataError(f"The folder {path} has more than {_MOST_PARTS:,} data files; join some of them.")
    found = {split: _joined(path, split, names, card) for split, names in parts.items()}
    return splits_of(found, str(path))


def _data_files(folder: Path) -> list[str]:
    """The data files and images of a folder by their paths from there, sorted; what is hidden is left out."""
    found = listed_files(folder, _is_data)
    if not found:
        raise DataError(
            f"The folder {folder} has no data files; they can be {', '.join(SUFFIXES)}, or images."
        )
    return found


def _is_data(name: str) -> bool:
    return (Path(name).suffix.lower() in SUFFIXES and name not in _NO_DATA) or is_image_file(name)


def _of_images(folder: Path, images: Sequence[str], files: Sequence[str], card: DataCard) -> dict[str, Table]:
    """The tables of a folder of images, labelled by metadata where there are some, else by folders."""
    parts = _named(folder, images, card.files) if card.files else None
    metadata = [file for file in files if is_metadata(file)]
    if not metadata:
        return by_folder(folder, images, parts)
    tables = {}
    for name in metadata:
        file_in(folder, name, DataError)
        tables[name] = read_part(folder / name)
    found = by_metadata(folder, images, tables, parts, card.classes)
    written = Path(metadata[0]).suffix.lower() == ".csv"
    return {split: _classed(table, card, written=written) for split, table in found.items()}


def _by_name(files: Sequence[str]) -> dict[str, list[str]]:
    """Files by the split that a folder's or their own name says; all for training where none does."""
    for parts_of in (lambda file: file.split("/")[:-1], lambda file: file.split("/")[-1:]):
        found: dict[str, list[str]] = {}
        for file in files:
            said = set(map(split_said, parts_of(file)))
            split = next((s for s in _SPLITS if s in said), None)
            if split is not None:
                found.setdefault(split, []).append(file)
        if found:
            return found
    return {"train": list(files)}


def _named(folder: Path, files: Sequence[str], patterns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Files by the patterns of a README."""
    found: dict[str, list[str]] = {}
    for split, wanted in patterns.items():
        for pattern in wanted:
            _check_inside(folder, pattern)
            segments = tuple(part for part in pattern.split("/") if part not in ("", "."))
            chosen = [file for file in files if _fits(tuple(file.split("/")), segments)]
            found.setdefault(split, []).extend(file for file in chosen if file not in found.get(split, ()))
    return {split: sorted(names) for split, names in found.items() if names}


def _check_inside(folder: Path, path: str) -> None:
    if "://" in path or "::" in path or not in_folder(path, folder):
        raise DataError(
            f"The README of {folder} names data at {path!r:.200}, which is not in its folder; only what lies "
            "there is read."
        )


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern: `**` stands for any number of folders, and at the end for all below."""
    reached = {0}  # places of the pattern that the parts so far may have led to
    for part in parts:
        reached |= {i + 1 for i in reached if i < len(pattern) and pattern[i] == "**"}
        stays = {i for i in reached if i < len(pattern) and pattern[i] == "**"}
        moves = {
            i + 1
            for i in reached
            if i < len(pattern) and pattern[i] != "**" and fnmatchcase(part, pattern[i])
        }
        reached = stays | moves
    return any(all(rest == "**" for rest in pattern[i:]) for i in reached)


def _of_one_format(parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The files of the suffix that most have; of a split that has none of them, those of the one that most of
    its own have."""
    suffix = _favoured(file for files in parts.values() for file in files)
    kept = {}
    for split, files in parts.items():
        own = suffix if any(_suffix(file) == suffix for file in files) else _favoured(files)
        if files:
            kept[split] = [file for file in files if _suffix(file) == own]
    return kept


def _suffix(file: str) -> str:
    return Path(file).suffix.lower()


def _favoured(files: Iterable[str]) -> str | None:
    """The suffix that most files have, of equal ones the one that is read best; `None` of no files."""
    counts = Counter(map(_suffix, files))
    last = len(_FAVOURED)
    return max(
        counts,
        key=lambda s: (counts[s], -_FAVOURED.index(s) if s in _FAVOURED else -last, s),
        default=None,
    )


def _joined(folder: Path, split: str, files: Sequence[str], card: DataCard) -> Table:
    """The rows of all files of a split."""
    where, tables = f"{folder} ({split})", []
    for name in files:
        file_in(folder, name, DataError)
        tables.append(read_part(folder / name))
    names = list(tables[0].columns)
    other = next((table for table in tables if set(table.columns) != set(names)), None)
    if other is not None:
        raise DataError(f"{other.where} has other columns than {tables[0].where}.")
    tables = numbered_alike(tables, card.classes)
    columns = {name: [value for table in tables for value in table.columns[name]] for name in names}
    classes = {k: v for table in tables for k, v in table.label_names.items()}
    written = Path(files[0]).suffix.lower() in (".csv", ".tsv")
    return _classed(Table(where, columns, classes), card, written=written)


def _classed(table: Table, card: DataCard, *, written: bool) -> Table:
    """A table with the classes that the README names, as their places.

    Args:
        written: whether its numbers are text, as in a CSV.
    """
    columns = {
        n: _as_numbers(v) if written and all(isinstance(x, str) for x in v) else v
        for n, v in table.columns.items()
    }
    classes = {**table.label_names, **card.classes}
    known = {name: classes[name] for name in columns if name in classes}
    found = {n: _as_indices(v, known[n]) if n in known else v for n, v in columns.items()}
    text = {n: v for n, v in table.columns.items() if columns[n] is not v and n not in known}
    return Table(table.where, found, known, text)


def _as_numbers(values: Sequence[Any]) -> Sequence[Any]:
    """A column of text as numbers where all of it is, and no code such as `007`; empty places are missing
    values then. Whole numbers keep all of their digits, so that ids stay apart."""
    filled = [value for value in values if value]
    if not filled or any(_CODE.fullmatch(value) or "_" in value for value in filled):
        return values
    number = int if all(_WHOLE.fullmatch(value) for value in filled) else _real
    try:
        return [number(value) if value else None for value in values]
    except ValueError:  # words, and whole numbers of more digits than Python reads
        return values


def _real(text: str) -> float | int:
    """A number as a real one; a whole one that no real one equals stays what it is."""
    number = float(text)
    return int(text) if _WHOLE.fullmatch(text) and int(text) != number else number


def _as_indices(values: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Classes as their places in `names`, where a file has the names themselves; those of lists too."""
    places = {name: i for i, name in enumerate(names)}

    def index(value: Any) -> Any:
        return places.get(value, value) if isinstance(value, str) else value

    return [[index(v) for v in value] if isinstance(value, list) else index(value) for value in values]
