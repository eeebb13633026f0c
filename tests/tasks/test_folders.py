"""Data folders in the hub's layout: which files are which split, what a README may name, and what is read."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.pictures import content, picture, write_pictures

from autopeft.errors import DataError
from autopeft.tasks.folders import images_in, read_folder
from autopeft.tasks.memory import tables_of
from autopeft.tasks.table import Table

ROWS = [("one", 0), ("two", 1), ("three", 0)]


def write(path: Path, rows: list[tuple[Any, ...]] = ROWS, names: tuple[str, ...] = ("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *rows])
    else:
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def readme(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{text}\n---\n\n# Data\n")


def same(found: dict[str, Table], folder: Path, cache: Path) -> bool:
    """Whether the library that the hub has for this reads the same."""
    loaded: Any = datasets.load_dataset(str(folder), cache_dir=str(cache))
    expected = tables_of(loaded, str(folder))
    assert list(found) == [name for name in ("train", "validation", "test") if name in expected]
    return all(
        dict(found[name].with_numbers("label").columns) == dict(expected[name].columns)
        and found[name].label_names == expected[name].label_names
        for name in found
    )


LAYOUTS: dict[str, tuple[str, ...]] = {
    "names of files": ("train.csv", "dev.csv", "test.csv"),
    "parts of names": ("my-train-part.csv", "my_validation.csv"),
    "numbered files": ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"),
    "folders": ("train/a.csv", "train/b.csv", "test/c.csv"),
    "no names": ("a.csv", "b.csv"),
    "no names, in a folder": ("some/a.jsonl",),
    "a word inside a word": ("training.csv", "contest.csv"),
    "other files beside": ("train.csv", "README.txt", "image.png", "dataset_infos.md"),
    "hidden ones": ("train.csv", ".git/test.csv", "__pycache__/dev.csv", ".train.csv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_those_that_the_hubs_library_finds(layout: str, tmp_path: Path) -> None:
    for i, name in enumerate(LAYOUTS[layout]):
        if name.endswith((".csv", ".jsonl")):
            write(tmp_path / "data" / name, [(f"text {i} {text}", label) for text, label in ROWS])
        else:
            (tmp_path / "data" / name).write_text("something else")
    assert same(read_folder(tmp_path / "data"), tmp_path / "data", tmp_path / "cache")


READMES = {
    "a path": "configs: [{config_name: default, data_files: mine.csv}]",
    "a pattern": 'configs: [{config_name: default, data_files: "part/*.csv"}]',
    "patterns by split": (
        "configs: [{config_name: a, data_files: [{split: train, path: 'part/**'}, "
        "{split: test, path: mine.csv}]}]"
    ),
    "lists of patterns": (
        "configs: [{config_name: a, data_files: [{split: train, path: [part/one.csv, part/two.csv]}]}]"
    ),
    "a folder": "configs: [{config_name: a, data_dir: part}]",
    "a default configuration": (
        "configs:\n- {config_name: other, data_files: mine.csv}\n"
        '- {config_name: default, data_files: "part/one.csv"}'
    ),
    "classes": (
        "dataset_info: {features: [{name: text, dtype: string}, "
        "{name: label, dtype: {class_label: {names: {'0': neg, '1': pos}}}}]}"
    ),
    "nothing of data": "license: mit",
}


@pytest.mark.parametrize("what", READMES)
def test_readmes_are_followed_as_the_hubs_library_does(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    readme(folder, READMES[what])
    for name in ("part/one.csv", "part/two.csv", "mine.csv"):
        write(folder / name, [(f"{name} {text}", label) for text, label in ROWS])
    assert same(read_folder(folder), folder, tmp_path / "cache")


@pytest.mark.parametrize(("train", "test"), [("train.jsonl", "test.csv"), ("train.csv", "test.jsonl")])
def test_a_split_in_another_format_is_read_all_the_same(train: str, test: str, tmp_path: Path) -> None:
    write(tmp_path / train)
    write(tmp_path / test, [("four", 1), ("five", 0)])
    found = read_folder(tmp_path)
    assert list(found) == ["train", "test"]
    assert list(found["train"].columns["text"]) == ["one", "two", "three"]
    assert found["test"].with_numbers("label").columns["label"] == [1, 0]


def test_a_split_that_lies_there_in_two_formats_is_read_once(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.csv", "test.csv"):
        write(tmp_path / name)
    assert {split: len(table) for split, table in read_folder(tmp_path).items()} == {"train": 3, "test": 3}


def test_labels_that_are_numbers_can_be_had_as_such(tmp_path: Path) -> None:
    """As the library reads them, so that data keep their hash."""
    rows = [("a", 1, 0.5, "1_0", ""), ("b", -2, 1e300, "2", ""), ("", 3, -4, "x", "")]
    write(tmp_path / "data" / "train.csv", rows, ("text", "whole", "real", "word", "empty"))
    table = read_folder(tmp_path / "data")["train"]
    columns = {name: table.with_numbers(name).columns[name] for name in table.columns}
    assert columns["whole"] == [1, -2, 3]
    assert columns["real"] == [0.5, 1e300, -4.0]
    assert columns["word"] == ["1_0", "2", "x"]
    assert columns["text"] == ["a", "b", ""]
    assert table.columns["whole"] == ["1", "-2", "3"], "until they are asked for"


def test_long_whole_numbers_keep_their_digits(tmp_path: Path) -> None:
    """Ids of 19 digits are three classes, also beside a number with a point; so they are in a single file."""
    ids = ["1234567890123456789", "1234567890123456790", "-9" + "0" * 20]
    beyond = "1" * 5_000  # which Python does not read
    rows = [("a", ids[0], ids[0], beyond), ("b", ids[1], ids[1], "2"), ("c", ids[2], "0.5", "3")]
    write(tmp_path / "train.csv", rows, ("text", "id", "mixed", "long"))
    table = read_folder(tmp_path)["train"]
    columns = {name: table.with_numbers(name).columns[name] for name in table.columns}
    assert columns["id"] == list(map(int, ids))
    assert columns["mixed"] == [int(ids[0]), int(ids[1]), 0.5]
    assert columns["long"] == [beyond, "2", "3"]


def shard(path: Path, labels: list[Any], names: list[str] | None) -> None:
    """A Parquet file as `datasets` writes it, whose classes have these names."""
    columns: dict[str, Any] = {"text": [f"{path.stem} {i}" for i in range(len(labels))], "label": labels}
    data = datasets.Dataset.from_dict(columns)
    if names is not None:
        label: Any = datasets.ClassLabel(names=names)
        data = data.cast_column("label", datasets.Sequence(label) if isinstance(labels[0], list) else label)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(path))


def called(table: Table) -> list[Any]:
    """The labels of a table by their names."""
    names = table.label_names["label"]

    def name(value: Any) -> Any:
        return list(map(name, value)) if isinstance(value, list) else names[value] if value >= 0 else None

    return list(map(name, table.columns["label"]))


def test_each_file_of_a_split_has_its_own_names_of_classes(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.parquet", [0, 1, -1], ["cat", "dog"])
    shard(tmp_path / "train-1.parquet", [0, 1, 2], ["bird", "cat", "dog"])
    shard(tmp_path / "train-2.parquet", ["dog", "fish"], None)
    assert called(read_folder(tmp_path)["train"]) == ["cat", "dog", None, "bird", "cat", "dog", "dog", "fish"]


def test_so_have_lists_of_classes(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.parquet", [[0, 1], []], ["cat", "dog"])
    shard(tmp_path / "train-1.parquet", [[0], [2, 1]], ["bird", "cat", "dog"])
    assert called(read_folder(tmp_path)["train"]) == [["cat", "dog"], [], ["bird"], ["dog", "cat"]]


def test_files_that_agree_keep_their_numbers(tmp_path: Path) -> None:
    for i in range(2):
        shard(tmp_path / f"train-{i}.parquet", [1, 0], ["dog", "cat"])
    table = read_folder(tmp_path)["train"]
    assert (table.columns["label"], table.label_names["label"]) == ([1, 0, 1, 0], ("dog", "cat"))


def test_numbers_without_names_beside_names_are_refused_or_those_of_the_readme(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.parquet", [0, 1], ["pos", "neg"])
    shard(tmp_path / "train-1.parquet", [0, 1], None)
    with pytest.raises(DataError, match=r"train-1\.parquet: column 'label' has 0 and no names .* README"):
        read_folder(tmp_path)
    readme(tmp_path, READMES["classes"])
    assert called(read_folder(tmp_path)["train"]) == ["pos", "neg", "neg", "pos"]


def test_a_readme_renames_classes_and_does_not_exchange_them(tmp_path: Path) -> None:
    readme(tmp_path, READMES["classes"])
    shard(tmp_path / "train.parquet", [0, 1], ["LABEL_0", "LABEL_1"])
    shard(tmp_path / "test.parquet", [0, 1], ["pos", "neg"])
    found = read_folder(tmp_path)
    assert {split: called(table) for split, table in found.items()} == {
        "train": ["neg", "pos"],
        "test": ["pos", "neg"],
    }


def test_a_readme_renames_the_classes_of_one_file_among_several(tmp_path: Path) -> None:
    readme(tmp_path, READMES["classes"])
    shard(tmp_path / "train-0.parquet", [0, 1, -1], ["LABEL_0", "LABEL_1"])
    shard(tmp_path / "train-1.parquet", [0, 1], None)
    shard(tmp_path / "train-2.parquet", [0, 1], ["pos", "neg"])
    assert called(read_folder(tmp_path)["train"]) == ["neg", "pos", None, "neg", "pos", "pos", "neg"]
    shard(tmp_path / "train-3.parquet", [0, 1], ["pos", "mixed"])
    with pytest.raises(DataError, match=r"train-3\.parquet: .* has a class 'mixed', which .* README"):
        read_folder(tmp_path)


def test_the_names_of_classes_come_from_parquet_or_readme(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    (tmp_path / "one").mkdir()
    data.to_parquet(str(tmp_path / "one" / "train.parquet"))
    assert read_folder(tmp_path / "one")["train"].label_names == {"label": ("no", "yes")}
    readme(tmp_path / "two", READMES["classes"])
    write(tmp_path / "two" / "train.jsonl", [("a", "pos"), ("b", "neg")])
    table = read_folder(tmp_path / "two")["train"]
    assert (table.columns["label"], table.label_names) == ([1, 0], {"label": ("neg", "pos")})


OUTSIDE = {
    "../secret.csv": "names data at '../secret.csv'",
    "../*": "names data at",
    "part/../../secret.csv": "names data at",
    "/etc/passwd": "names data at '/etc/passwd'",
    "https://example.org/a.csv": "names data at",
    "hf://datasets/a/b/c.csv": "names data at",
    "zip://a.csv::https://example.org/a.zip": "names data at",
    "nothing.csv": "no data files where its README says",
    "": "no data files where its README says",
}


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_readme_names_only_what_lies_in_its_folder(path: str, tmp_path: Path) -> None:
    write(tmp_path / "secret.csv")
    folder = write(tmp_path / "data" / "train.csv").parent
    readme(folder, f"configs: [{{config_name: a, data_files: {path!r}}}]")
    with pytest.raises(DataError, match=OUTSIDE[path]):
        read_folder(folder)
    readme(folder, f"configs: [{{config_name: a, data_dir: {path or 'nothing'!r}}}]")
    with pytest.raises(DataError, match=r"no data files in .* where its README says"):
        read_folder(folder)


def test_data_may_be_linked_from_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere.csv")
    folder = write(tmp_path / "data" / "train.csv").parent
    (folder / "test.csv").symlink_to("../elsewhere.csv")
    assert {split: len(table) for split, table in read_folder(folder).items()} == {"train": 3, "test": 3}


def test_folders_that_are_linked_into_themselves(tmp_path: Path) -> None:
    folder = write(tmp_path / "data" / "train.csv").parent
    for name in "abcdef":
        (folder / name).symlink_to(".")
    assert len(read_folder(folder)["train"]) == 3


def test_what_is_no_folder_of_data_is_refused_soon(tmp_path: Path) -> None:
    """Such as a home folder: it is not searched to its end."""
    for i in range(101):
        (tmp_path / f"d{i}").mkdir()
        for j in range(100):
            (tmp_path / f"d{i}" / f"{j}.txt").touch()
    with pytest.raises(DataError, match="more than 10,000 files and folders"):
        read_folder(tmp_path)


def test_a_pipe_among_the_data_is_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "data" / "train.csv").parent
    os.mkfifo(folder / "train2.csv")
    with pytest.raises(DataError, match="a device, a pipe or a socket"):
        read_folder(folder)


def test_files_of_a_split_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "train1.csv")
    write(tmp_path / "train2.csv", names=("label", "text"))
    assert read_folder(tmp_path)["train"].columns["label"] == ["0", "1", "0", "one", "two", "three"]
    write(tmp_path / "train2.csv", names=("text", "other"))
    with pytest.raises(DataError, match=r"train2\.csv has other columns than .*train1\.csv"):
        read_folder(tmp_path)


BAD_READMES = {
    "configs: &a [x]\ndataset_info: *a": r"README\.md:2: anchor",
    "configs: [": "README.md:3: not valid YAML",
    "- a": "its YAML is no mapping",
    "configs: {config_name: a}": "README.md: Expected configs to be a list",
    "configs: [{config_name: a, data_files: {train: x}}]": "README.md: Expected data_files",
    "configs: [{config_name: a, data_files: [[x]]}]": "README.md: Expected data_files",
    "configs:\n- {config_name: a, data_files: a.csv}\n- {config_name: b, data_files: b.csv}": (
        r"several configurations \('a', 'b'\)"
    ),
    "configs: [{config_name: a, data_files: [{split: extra, path: train.csv}]}]": "it has extra",
}


@pytest.mark.parametrize("text", BAD_READMES)
def test_unusable_readmes(text: str, tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    readme(tmp_path, text)
    with pytest.raises(DataError, match=BAD_READMES[text]):
        read_folder(tmp_path)


def test_hidden_labels_of_a_leader_board_are_no_test(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    write(tmp_path / "test.csv", [("a", -1), ("b", -1)])
    assert list(read_folder(tmp_path)) == ["train"]


# Images
# ----------------------------------------------------------------------------------------------------------


IMAGE_LAYOUTS: dict[str, tuple[str, ...]] = {
    "labels": ("cat/1.png", "dog/2.png", "dog/3.png"),
    "splits and labels": ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png"),
    "train alone": ("train/cat/1.png", "train/dog/2.png"),
    "further folders above": ("data/train/cat/1.png", "data/train/dog/2.png", "data/val/dog/3.png"),
    "other files beside": ("cat/1.png", "dog/2.png", "README.txt"),
    "hidden ones": ("cat/1.png", "dog/2.png", ".git/x/3.png"),
    "several formats": ("cat/1.jpg", "dog/2.png", "dog/3.gif"),
}


def write_images(folder: Path, files: tuple[str, ...]) -> Path:
    for i, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".gif": "GIF"}.get(path.suffix, "PNG")
        path.write_bytes(content(picture("dark", i), kind) if path.suffix != ".txt" else b"text")
    return folder


def told(tables: dict[str, Table]) -> dict[str, list[Any]]:
    """Digest and label of each row."""
    return {
        split: sorted(
            (i.digest, label) for i, label in zip(t.columns["image"], t.columns["label"], strict=True)
        )
        for split, t in tables.items()
    }


def read_by_imagefolder(folder: Path, cache: Path) -> dict[str, list[Any]]:
    loaded: Any = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache))
    found = {}
    for split, rows in loaded.items():
        names = rows.features["label"].names
        rows = rows.cast_column("image", datasets.Image(decode=False))
        found[str(split)] = sorted(
            (hashlib.sha256(Path(row["image"]["path"]).read_bytes()).hexdigest(), names[row["label"]])
            for row in rows
        )
    return found


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_splits_and_labels_are_those_of_imagefolder(layout: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", IMAGE_LAYOUTS[layout])
    assert told(read_folder(folder)) == read_by_imagefolder(folder, tmp_path / "cache")


def test_the_outermost_folder_says_the_split(tmp_path: Path) -> None:
    """`datasets` has the image of train with the label "test" in both splits."""
    folder = write_images(
        tmp_path, ("train/test/1.png", "train/cat/2.png", "test/test/3.png", "test/cat/4.png")
    )
    assert {split: table.columns["label"] for split, table in read_folder(folder).items()} == {
        "train": ["cat", "test"],
        "test": ["cat", "test"],
    }


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_metadata_name_images_and_say_more(suffix: str, tmp_path: Path) -> None:
    folder = write_images(
        tmp_path / "data", ("train/a/1.png", "train/b/2.png", "train/b/3.png", "test/4.png")
    )
    rows = {"train": [("a/1.png", "x"), ("b/2.png", "y")], "test": [("4.png", "x")]}
    for split, own in rows.items():
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in own]
        if suffix == ".csv":
            lines = ["file_name,label", *(",".join(row) for row in own)]
        (folder / split / f"metadata{suffix}").write_text("\n".join(lines) + "\n")
    found = read_folder(folder)
    assert {split: table.columns["label"] for split, table in found.items()} == {
        "train": ["x", "y"],
        "test": ["x"],
    }
    assert [image.name for image in found["train"].columns["image"]] == ["train/a/1.png", "train/b/2.png"]


def test_one_table_at_the_top_names_all(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ("train/1.png", "train/2.png", "test/3.png"))
    rows = "file_name,kind\ntrain/1.png,x\n./train/../train/2.png,y\ntest/3.png,x\n"
    (folder / "metadata.csv").write_text(rows)
    found = read_folder(folder)
    assert {split: table.columns["kind"] for split, table in found.items()} == {
        "train": ["x", "y"],
        "test": ["x"],
    }


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_readme_names_the_classes_of_metadata(suffix: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path, ("1.png", "2.png", "3.png"))
    (folder / "README.md").write_text(
        "---\ndataset_info: {features: [{name: image, dtype: image}, "
        "{name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}]}\n---\n"
    )
    rows = [(f"{i + 1}.png", label) for i, label in enumerate((1, 0, 1))]
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    if suffix == ".csv":
        lines = ["file_name,label", *(f"{name},{label}" for name, label in rows)]
    (folder / f"metadata{suffix}").write_text("\n".join(lines) + "\n")
    table = read_folder(folder)["train"]
    assert (table.columns["label"], table.label_names["label"]) == ([1, 0, 1], ("cat", "dog"))


def test_each_table_of_metadata_has_its_own_names_of_classes(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ("train/a/1.png", "train/b/2.png", "test/3.png", "test/4.png"))
    names = {"train/a": ["cat", "dog"], "train/b": ["dog", "cat"], "test": ["bird", "cat"]}
    rows = {"train/a": {"1.png": 0}, "train/b": {"2.png": 0}, "test": {"3.png": 0, "4.png": 1}}
    for below, own in rows.items():
        data = datasets.Dataset.from_dict({"file_name": list(own), "label": list(own.values())})
        data = data.cast_column("label", datasets.ClassLabel(names=names[below]))
        data.to_parquet(str(folder / below / "metadata.parquet"))
    assert {
        split: [table.label_names["label"][label] for label in table.columns["label"]]
        for split, table in read_folder(folder).items()
    } == {"train": ["cat", "dog"], "test": ["bird", "cat"]}


BAD_ROWS = {
    "../outside.png": "which is no image",
    "/etc/passwd": "which is no image",
    "other.png": "names 'other.png', which is no image",
    "metadata.csv": "is no image",
    "": "no name of a file",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_metadata_name_nothing_else(name: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", ("1.png", "2.png", "3.png"))
    (tmp_path / "outside.png").write_bytes(content(picture("dark", 9)))
    (folder / "metadata.csv").write_text(f'file_name,label\n1.png,x\n"{name}",y\n')
    with pytest.raises(DataError, match=BAD_ROWS[name]):
        read_folder(folder)


@pytest.mark.parametrize(
    ("files", "which"),
    [
        (("1.png", "2.png"), "1.png"),
        (("train/1.png", "test/2.png"), "t"),
        (("train/cat/1.png", "train/2.png"), "train/2.png"),
        (("train/cat/1.png", "figures/2.png"), "figures/2.png"),
    ],
)  # fmt: skip
def test_an_image_without_a_label_is_named(files: tuple[str, ...], which: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"says no label of {which}"):
        read_folder(write_images(tmp_path, files))


def test_tables_with_fewer_images_beside_them_are_tables(tmp_path: Path) -> None:
    write_images(tmp_path, ("figure.png",))
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    assert list(read_folder(tmp_path)["train"].columns) == ["text", "label"]


def test_a_readme_says_the_splits_of_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ("one/cat/1.png", "one/dog/2.png", "two/cat/3.png"))
    parts = "{split: train, path: 'one/**'}, {split: test, path: 'two/**'}"
    said = f"configs: [{{config_name: a, data_files: [{parts}]}}]"
    (folder / "README.md").write_text(f"---\n{said}\n---\n")
    assert {split: table.columns["label"] for split, table in read_folder(folder).items()} == {
        "train": ["cat", "dog"], "test": ["cat"]
    }  # fmt: skip


def test_a_readme_says_the_splits_of_metadata_too(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ("one/1.png", "two/2.png"))
    parts = "{split: train, path: 'two/**'}, {split: test, path: 'one/**'}"
    (folder / "README.md").write_text(f"---\nconfigs: [{{config_name: a, data_files: [{parts}]}}]\n---\n")
    (folder / "metadata.csv").write_text("file_name,label\none/1.png,x\ntwo/2.png,y\n")
    found = read_folder(folder)
    assert {split: table.columns["label"] for split, table in found.items()} == {
        "train": ["y"],
        "test": ["x"],
    }


def test_a_readme_that_names_no_image_is_told(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ("cat/1.png", "dog/2.png"))
    (folder / "README.md").write_text("---\nconfigs: [{config_name: a, data_files: 'one/**'}]\n---\n")
    with pytest.raises(DataError, match="no data files where its README says"):
        read_folder(folder)


def test_images_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4)
    assert [image.name for image in images_in(tmp_path).columns["image"]] == [
        "dark/0.png", "dark/2.png", "light/1.png", "light/3.png"
    ]  # fmt: skip
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no images"):
        images_in(tmp_path / "none")
