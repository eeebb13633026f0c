"""What the README of a data folder says: which files are which split, and the names of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.errors import DataError, RecipeError
from autopeft.foreign import file_in, read_plain
from autopeft.recipe.yaml_text import read_yaml

__all__ = ["DataCard", "card_of", "classes_of"]

_MOST_BYTES = 1 << 20
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.M | re.S)
_OTHER = ".huggingface.yaml"
_LISTS = ("Sequence", "List", "LargeList")
_TYPES = ("dtype", "sequence", "list")  # where a feature says what it is, or what is in its lists


@dataclass(frozen=True)
class DataCard:
    """What a folder says of its data.

    Attributes:
        files: patterns by split; empty where names of files tell.
        folder: where in the folder the data are, ending in a slash; empty for everywhere.
        classes: names of the classes by column.
    """

    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folder: str = ""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def card_of(folder: Path) -> DataCard:
    """What the front matter of the folder's `README.md` says, and its `.huggingface.yaml`.

    Raises:
        DataError: it is no plain file of the folder or no YAML, or has several configurations and no default
            one.
    """
    readme, other = folder / "README.md", folder / _OTHER
    said: dict[str, Any] = {}
    if file_in(folder, readme.name, DataError) is not None:
        text = _text(readme)
        front = _FRONT.match(text)
        if front is not None:
            # Empty lines in place of what stands before keep the numbers of lines.
            said |= _mapping("\n" * text.count("\n", 0, front.start(1)) + front[1], readme)
    if file_in(folder, _OTHER, DataError) is not None:
        said |= _mapping(_text(other), other)
    config = _chosen(said.get("configs"), readme)
    where = config.get("data_dir")
    below = "" if where is None else _word(where, readme).rstrip("/") + "/"
    files = _patterns(config.get("data_files"), below, readme)
    info = said.get("dataset_info")
    infos = info if isinstance(info, list) else [info]
    named = [
        i for i in infos if isinstance(i, dict) and i.get("config_name") in (config.get("config_name"), None)
    ]
    return DataCard(files, below, classes_of(named[0].get("features")) if named else {})


def _text(path: Path) -> str:
    try:
        return read_plain(path, _MOST_BYTES, DataError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error


def _mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(text, str(path))
    except RecipeError as error:
        raise DataError(str(error)) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise DataError(f"{path}: its YAML is no mapping.")
    return found


def _chosen(configs: Any, path: Path) -> dict[str, Any]:
    """The one configuration, or the default one."""
    if configs is None:
        return {}
    listed = configs if isinstance(configs, list) else [configs]
    if not all(isinstance(config, dict) for config in listed):
        raise DataError(f"{path}: 'configs' is a list of mappings.")
    default = [c for c in listed if c.get("default") is True] or [
        c for c in listed if c.get("config_name") == "default"
    ]
    found = default if default else listed
    if len(found) > 1:
        names = ", ".join(repr(str(config.get("config_name")))[:40] for config in listed[:10])
        raise DataError(
            f"{path} has several configurations ({names}) and none that is the default; name the file of one "
            "of them instead."
        )
    return found[0] if found else {}


def _patterns(data_files: Any, below: str, path: Path) -> dict[str, list[str]]:
    """`data_files` in each of its forms: a pattern, a list of them, or a list of splits."""
    if data_files is None:
        return {}
    found: dict[str, list[str]] = {}
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, listed = "train", [entry]
        if isinstance(entry, dict):
            split, wanted = _word(entry.get("split"), path), entry.get("path")
            listed = wanted if isinstance(wanted, list) else [wanted]
        found.setdefault(split, []).extend(below + _word(pattern, path) for pattern in listed)
    return found


def _word(value: Any, path: Path) -> str:
    if not isinstance(value, str) or not value or len(value) > 500:
        raise DataError(
            f"{path}: 'data_files' is a path, a list of paths, or a list of {{split: …, path: …}}, but got "
            f"{value!r:.80}."
        )
    return value


def classes_of(features: Any) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, also of lists of classes, of features as READMEs (a list) and Parquet
    files (a mapping) have them; what is none is left out."""
    pairs: list[tuple[Any, Any]] = []
    for name, kind in features.items() if isinstance(features, dict) else ():
        label = _field(kind, "feature") if _field(kind, "_type") in _LISTS else kind
        if _field(label, "_type") == "ClassLabel":
            pairs.append((name, _field(label, "names")))
    for feature in features if isinstance(features, list) else ():
        inner = next((f for f in (_field(feature, key) for key in _TYPES) if isinstance(f, dict)), None)
        pairs.append((_field(feature, "name"), _field(_field(inner, "class_label"), "names")))
    named = {column: _in_order(names) for column, names in pairs if isinstance(column, str)}
    return {column: names for column, names in named.items() if names}


def _field(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _in_order(names: Any) -> tuple[str, ...]:
    """A list of names, or a mapping from their numbers."""
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()
