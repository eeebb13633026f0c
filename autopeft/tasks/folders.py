"""A folder of rows: data files in the hub's layout, or images in that of `imagefolder`.

```
train.csv  dev.csv  test.csv         a split for each file, as its name says
train/a.jsonl  train/b.jsonl  test/  or for each folder
README.md                            or as its front matter says (`configs`), with the names of classes
train/cat/1.png  test/dog/2.png      images in a folder for each label
train/metadata.csv                   or beside a table whose column `file_name` says where each one lies
```

The files are found here and read by `autopeft.tasks.files`; `datasets` reads the README. Its own search for
files takes several times as long for images, ends at `train.py` where the data are in `data.csv`, refuses
splits of different formats, and has all files number their classes as the first one does.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any

from autopeft.errors import DataError, RecipeError
from autopeft.foreign import read_plain
from autopeft.recipe.yaml_text import read_yaml
from autopeft.tasks.files import MOST_BYTES, SUFFIXES, read_file
from autopeft.tasks.images import IMAGE_SUFFIXES, ImageFile
from autopeft.tasks.memory import class_names, splits_of
from autopeft.tasks.table import Table, as_numbers, refuse_rows

__all__ = ["IMAGE", "images_in", "is_image_file", "read_folder"]

IMAGE, LABEL, _FILE_NAME = "image", "label", "file_name"
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_FAVOURED = (".csv", ".json", ".jsonl", ".parquet")  # the last one first, where there are as many of several
_TEXT = (".csv", ".tsv")  # formats in which numbers are text
_MOST_FILES = 10_000
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_APART = "-._ 0123456789"  # what parts a keyword from the rest of a name
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.M | re.S)
_HIDDEN = -1

Names = tuple[str, ...]
Parts = dict[str, list[str]]  # paths of files from the folder, by split


@dataclass(frozen=True)
class _Card:
    """What a README says of the data: `patterns` of files by split, in which folder they are (`below`, with a
    slash at its end, or nothing for all), and the names of `classes` by column."""

    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    below: str = ""
    classes: Mapping[str, Names] = field(default_factory=dict)


def read_folder(folder: Path) -> dict[str, Table]:
    """The tables of a folder by split, `validation` and `test` only where there are such files.

    A folder that holds more images than data files is one of images. Of several formats in a split the one
    that most files have is read.

    Raises:
        DataError: there are no data files or no train split, or something cannot be read.
    """
    suffixes = (*SUFFIXES, *IMAGE_SUFFIXES)
    files = _listed(folder, lambda name: name.lower().endswith(suffixes) and name not in _NO_DATA)
    if not files:
        raise DataError(
            f"The folder {folder} has no data files; they can be {', '.join(SUFFIXES)}, or images."
        )
    card = _card_of(folder)
    files = [file for file in files if file.startswith(card.below)]
    if not files:
        raise DataError(
            f"The folder {folder} has no data files in {card.below}, where its README says that they are."
        )
    images = [file for file in files if is_image_file(file)]
    data = [file for file in files if not is_image_file(file)]
    metadata = [file for file in data if PurePosixPath(file).name in _METADATA]
    if len(images) > len(data) - len(metadata):
        parts = _by_pattern(folder, images, card) if card.patterns else None
        if metadata:
            return splits_of(_of_metadata(folder, images, metadata, parts, card.classes), str(folder))
        return splits_of(_of_labels(folder, images, parts), str(folder))
    parts = _by_pattern(folder, data, card) if card.patterns else _by_name(data)
    formats = Counter(_suffix(file) for own in parts.values() for file in own)
    found = {}
    for split, own in parts.items():
        best = max(
            map(_suffix, own), key=lambda s: (formats[s], _FAVOURED.index(s) if s in _FAVOURED else -1, s)
        )
        tables = [read_file(folder / file) for file in own if _suffix(file) == best]
        found[split] = _joined(f"{folder} ({split})", tables, card.classes)
    return splits_of(found, str(folder))


def images_in(folder: Path) -> Table:
    """All images of a folder and the folders in it, without labels.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    files = _listed(folder, is_image_file)
    if not files:
        raise DataError(f"The folder {folder} has no images; they can be {', '.join(IMAGE_SUFFIXES)}.")
    return Table(str(folder), {IMAGE: [ImageFile.of_file(folder / file, file) for file in files]}, {})


def is_image_file(name: str) -> bool:
    """Whether a file is an image, by its suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES)


# Which file is of which split
# ------------------------------------------------------------------------------------------------------


def _listed(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """The files of a folder whose names are wanted, by their paths from there, sorted; without what is
    hidden or lies in linked folders.

    Raises:
        DataError: it is no folder of a data set, such as a home folder.
    """
    found, others = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        others += len(folders) + sum(not is_image_file(name) for name in names)
        if others > _MOST_FILES:
            raise DataError(
                f"The folder {folder} holds more than {_MOST_FILES:,} files and folders beside images: it is "
                "not one of a data set. Name the folder, or the file, of the data."
            )
        for name in names:
            if wanted(name) and not name.startswith("."):
                found.append(Path(place, name).relative_to(folder).as_posix())
    return sorted(found)


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _split_said(name: str) -> str | None:
    """The split that a folder's or a file's name says: `train`, `validation` or `test`."""
    apart = f"[{re.escape(_APART)}]"
    for split, words in _KEYWORDS.items():
        if re.search(rf"(^|{apart})({'|'.join(words)})($|{apart})", name.lower()):
            return split
    return None


def _by_name(files: Sequence[str]) -> Parts:
    """Files by the split that a folder's or else their own name says; all for training where none does."""
    for names_of in (lambda file: file.split("/")[:-1], lambda file: file.split("/")[-1:]):
        found: Parts = {}
        for file in files:
            said = {_split_said(name) for name in names_of(file)}
            split = next((split for split in _KEYWORDS if split in said), None)
            if split is not None:
                found.setdefault(split, []).append(file)
        if found:
            return found
    return {"train": list(files)}


def _by_pattern(folder: Path, files: Sequence[str], card: _Card) -> Parts:
    """Files by the patterns of a README.

    Raises:
        DataError: a pattern names what is not in the folder, or they fit none of its files.
    """
    found: Parts = {}
    for split, patterns in card.patterns.items():
        fits: set[str] = set()
        for pattern in patterns:
            path = os.path.normpath(card.below + pattern)
            if "://" in pattern or path.startswith(("/", "..")):
                raise DataError(
                    f"The README of {folder} names data at {pattern!r}, which is not in its folder; only "
                    "what lies there is read."
                )
            fits.update(map(os.path.normpath, glob(path, root_dir=folder, recursive=True)))
        found[split] = [file for file in files if file in fits]
    if not any(found.values()):
        raise DataError(f"The folder {folder} has no data files where its README says that they are.")
    return {split: own for split, own in found.items() if own}


def _card_of(folder: Path) -> _Card:
    """What the front matter of the folder's `README.md` says, and its `.huggingface.yaml`.

    Raises:
        DataError: it is not UTF-8 or no YAML, `datasets` refuses what it says, or it has several
            configurations and none that is the default.
    """
    said: dict[str, Any] = {}
    for path in (folder / "README.md", folder / ".huggingface.yaml"):
        if not path.is_file():
            continue
        try:
            text = read_plain(path, MOST_BYTES, DataError).decode("utf-8-sig")
            if path.suffix == ".md":
                front = _FRONT.match(text)
                # Empty lines in place of what stands before keep the numbers of lines.
                text = "" if front is None else "\n" * text.count("\n", 0, front.start(1)) + front[1]
            found = read_yaml(text, str(path)) if text.strip() else None
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
        except RecipeError as error:
            raise DataError(str(error)) from error
        if not isinstance(found, dict | None):
            raise DataError(f"{path}: its YAML is no mapping.")
        said |= found or {}
    if said.get("configs") is None and said.get("dataset_info") is None:
        return _Card()
    from datasets.data_files import sanitize_patterns
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs

    try:
        configs = MetadataConfigs.from_dataset_card_data(said)
        infos = DatasetInfosDict.from_dataset_card_data(said)
        name = configs.get_default_config_name()
        config = configs[name] if name is not None else {}
        info = infos.get(name, infos.get("default"))
        below = os.path.normpath(config.get("data_dir") or ".") + "/"
        files = config.get("data_files")
        patterns = {} if files is None else sanitize_patterns(files)
    # What a README has wrong is told by errors without a common base.
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{folder / 'README.md'}: {first}") from error
    if configs and name is None:
        raise DataError(
            f"{folder / 'README.md'} has several configurations ({', '.join(map(repr, configs))[:400]}) and "
            "none that is the default; name the file of one of them instead."
        )
    classes = {} if info is None or info.features is None else class_names(info.features)
    return _Card(patterns, below.removeprefix("./"), classes)


# Images
# ------------------------------------------------------------------------------------------------------


def _of_labels(folder: Path, images: Sequence[str], parts: Parts | None) -> dict[str, Table]:
    """The tables of images that lie in folders of their labels, in the splits of `parts`, or else of the
    outermost folder above those of labels whose name says one.

    Raises:
        DataError: no folder says the label of an image, or it cannot be read.
    """
    if parts is None:
        parts = {}
        others: list[str] = []
        for file in images:
            above = PurePosixPath(file).parts[:-2]
            split = next(filter(None, map(_split_said, above)), None)
            (others if split is None else parts.setdefault(split, [])).append(file)
        if others and (parts or all(_split_said(PurePosixPath(file).parts[0]) for file in others)):
            raise _unlabelled(folder, others[0])
        parts = parts or {"train": others}
    found = {}
    for split, own in parts.items():
        labels = [PurePosixPath(file).parent.name for file in own]
        if "" in labels:
            raise _unlabelled(folder, own[labels.index("")])
        pictures = [ImageFile.of_file(folder / file, file) for file in own]
        found[split] = Table(f"{folder} ({split})", {IMAGE: pictures, LABEL: labels}, {})
    return found


def _unlabelled(folder: Path, file: str) -> DataError:
    return DataError(
        f"The folder {folder} says no label of {file}: images lie in folders of their labels (cat/1.png, or "
        f"train/cat/1.png and test/cat/1.png), or {_METADATA[0]} names each in its column {_FILE_NAME!r}."
    )


def _of_metadata(
    folder: Path,
    images: Sequence[str],
    metadata: Sequence[str],
    parts: Parts | None,
    classes: Mapping[str, Names],
) -> dict[str, Table]:
    """The tables of the images that metadata name, from their own folder on; others are left out. A split is
    that of `parts`, or else of the outermost folder of an image whose name says one.

    Raises:
        DataError: metadata name what is no image of the folder, or have no or other columns.
    """
    split_of = {file: split for split, own in (parts or {}).items() for file in own}
    known = set(images)
    found: dict[str, list[Table]] = {}
    for path in metadata:
        table = read_file(folder / path)
        if _FILE_NAME not in table.columns or IMAGE in table.columns:
            raise DataError(
                f"{table.where} has the columns {', '.join(map(repr, list(table.columns)[:12]))}; metadata "
                f"have {_FILE_NAME!r}, which names the images, and no {IMAGE!r}, which is where these come."
            )
        names = table.columns[_FILE_NAME]
        wrong = [i for i, name in enumerate(names) if not isinstance(name, str) or not name.strip()]
        refuse_rows(table, _FILE_NAME, "no name of a file", wrong)
        files = [os.path.normpath(PurePosixPath(path).parent / name) for name in names]
        strange = next((i for i, file in enumerate(files) if file not in known), None)
        if strange is not None:
            name = names[strange]
            raise DataError(
                f"{table.where}: row {strange + 1} names {name!r}, which is no image of {folder}."
            )
        rows: dict[str, list[int]] = {}
        for i, file in enumerate(files):
            said = next(filter(None, map(_split_said, PurePosixPath(file).parts[:-1])), "train")
            rows.setdefault(split_of.get(file, said), []).append(i)
        for split, own in rows.items():
            part = table.take(own)
            pictures = [ImageFile.of_file(folder / files[i], files[i]) for i in own]
            others = {name: values for name, values in part.columns.items() if name != _FILE_NAME}
            found.setdefault(split, []).append(replace(part, columns={IMAGE: pictures, **others}))
    return {split: _joined(f"{folder} ({split})", own, classes) for split, own in found.items()}


# The rows of several files
# ------------------------------------------------------------------------------------------------------


def _joined(where: str, tables: Sequence[Table], known: Mapping[str, Names]) -> Table:
    """The rows of all files of a split, with one numbering of the classes of each column.

    A number means what its own file calls it, so where files name the classes of a column differently, all
    get the numbers of the README's names, else of all names in the order in which they come. So do names
    that stand in place of numbers.

    Args:
        known: names of classes by column that a README says.

    Raises:
        DataError: files have different columns, or number classes that only others name; or some names of
            classes are the README's, and some are not.
    """
    columns: dict[str, list[Any]] = {name: [] for name in tables[0].columns}
    other = next((table for table in tables if set(table.columns) != set(columns)), None)
    if other is not None:
        raise DataError(f"{other.where} has other columns than {tables[0].where}.")
    text = _suffix(tables[0].where) in _TEXT
    label_names: dict[str, Names] = {}
    for name, joined in columns.items():
        noted = {table.label_names.get(name) for table in tables}
        names = known.get(name)
        if names is None and len(noted) > 1:
            names = _all_names(tables, name)
        for table in tables:
            values = table.columns[name]
            if names is not None:
                values = _renumbered(table, name, as_numbers(values) if text else values, names)
            joined.extend(values)
        names = names or noted.pop()
        if names is not None:
            label_names[name] = names
    return Table(where, columns, label_names, numbers_are_text=text)


def _all_names(tables: Sequence[Table], column: str) -> Names:
    """All names of a column's classes; of files that note none those that stand in the column.

    Raises:
        DataError: numbers stand there.
    """
    noting = next(table for table in tables if column in table.label_names)
    names: dict[str, None] = {}
    for table in tables:
        own = table.label_names.get(column)
        if own is None:
            lists = (value if isinstance(value, list) else [value] for value in table.columns[column])
            values = [value for held in lists for value in held]
            number = next((v for v in values if isinstance(v, int | float) and v >= 0), None)
            if number is not None:
                raise DataError(
                    f"{table.where}: column {column!r} has {number!r} and no names of its classes, where "
                    f"{noting.where} names its own; the numbers of one need not be those of the other. Write "
                    "names in place of the numbers, or name the classes in the folder's README "
                    "(dataset_info, class_label)."
                )
            own = tuple(v for v in values if isinstance(v, str) and v.strip())
        names |= dict.fromkeys(own)
    return tuple(names)


def _renumbered(table: Table, column: str, values: Sequence[Any], names: Names) -> list[Any]:
    """Classes, or lists of them, by their numbers in `names`. A file whose own names are all others has the
    same classes under other names, as a README may rename them; a number without a name becomes -1."""
    own = table.label_names.get(column)
    if own is not None and not set(own) <= set(names):
        strange = next(name for name in own if name not in names)
        if len(own) > len(names) or not set(own).isdisjoint(names):
            raise DataError(
                f"{table.where}: column {column!r} has a class {strange!r}, which the folder's README does "
                f"not name ({', '.join(map(repr, names[:20]))}); name it there, or name no classes there."
            )
        own = names[: len(own)]
    places = {name: i for i, name in enumerate(names)}

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(held) for held in value]
        if own is not None and isinstance(value, int) and not isinstance(value, bool):
            return places[own[value]] if 0 <= value < len(own) else _HIDDEN
        return places.get(value, value) if isinstance(value, str) else value

    return list(map(number, values))
