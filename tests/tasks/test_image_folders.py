"""Folders of images: the same splits and labels as imagefolder of `datasets`, and nothing outside of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.pictures import content, picture, write_pictures

from autopeft.errors import DataError
from autopeft.tasks.folders import read_folder
from autopeft.tasks.image_folders import images_in
from autopeft.tasks.table import Table

LAYOUTS: dict[str, tuple[str, ...]] = {
    "labels": ("cat/1.png", "dog/2.png", "dog/3.png"),
    "splits and labels": ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png"),
    "train alone": ("train/cat/1.png", "train/dog/2.png"),
    "further folders above": ("data/train/cat/1.png", "data/train/dog/2.png", "data/val/dog/3.png"),
    "other files beside": ("cat/1.png", "dog/2.png", "README.txt"),
    "hidden ones": ("cat/1.png", "dog/2.png", ".git/x/3.png"),
    "several formats": ("cat/1.jpg", "dog/2.png", "dog/3.gif"),
}


def write(folder: Path, files: tuple[str, ...]) -> Path:
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


def expected(folder: Path, cache: Path) -> dict[str, list[Any]]:
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_and_labels_are_those_of_imagefolder(layout: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", LAYOUTS[layout])
    assert told(read_folder(folder)) == expected(folder, tmp_path / "cache")


def test_the_outermost_folder_says_the_split(tmp_path: Path) -> None:
    """`datasets` has the image of train with the label "test" in both splits."""
    folder = write(tmp_path, ("train/test/1.png", "train/cat/2.png", "test/test/3.png", "test/cat/4.png"))
    assert {split: table.columns["label"] for split, table in read_folder(folder).items()} == {
        "train": ["cat", "test"],
        "test": ["cat", "test"],
    }


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_metadata_name_images_and_say_more(suffix: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", ("train/a/1.png", "train/b/2.png", "train/b/3.png", "test/4.png"))
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
    folder = write(tmp_path, ("train/1.png", "train/2.png", "test/3.png"))
    rows = "file_name,kind\ntrain/1.png,x\n./train/../train/2.png,y\ntest/3.png,x\n"
    (folder / "metadata.csv").write_text(rows)
    found = read_folder(folder)
    assert {split: table.columns["kind"] for split, table in found.items()} == {
        "train": ["x", "y"],
        "test": ["x"],
    }


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_readme_names_the_classes_of_metadata(suffix: str, tmp_path: Path) -> None:
    folder = write(tmp_path, ("1.png", "2.png", "3.png"))
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
    folder = write(tmp_path, ("train/a/1.png", "train/b/2.png", "test/3.png", "test/4.png"))
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
    "../outside.png": "a path that leaves the folder",
    "/etc/passwd": "a path that leaves the folder",
    "link.png": "a path that leaves the folder",
    "other.png": "names 'other.png', which is no image",
    "metadata.csv": "is no image",
    "": "no name of a file",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_metadata_name_nothing_else(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", ("1.png", "2.png", "3.png"))
    (tmp_path / "outside.png").write_bytes(content(picture("dark", 9)))
    (folder / "link.png").symlink_to("../outside.png")
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
        read_folder(write(tmp_path, files))


def test_links_and_pipes_are_no_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", ("cat/1.png", "dog/2.png"))
    (tmp_path / "secret.png").write_bytes(content(picture("dark", 9)))
    (folder / "cat" / "3.png").symlink_to("../../secret.png")
    with pytest.raises(DataError, match="leads out of its folder"):
        read_folder(folder)
    (folder / "cat" / "3.png").unlink()
    os.mkfifo(folder / "cat" / "3.png")
    with pytest.raises(DataError, match="not a plain file"):
        read_folder(folder)


def test_tables_with_fewer_images_beside_them_are_tables(tmp_path: Path) -> None:
    write(tmp_path, ("figure.png",))
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    assert list(read_folder(tmp_path)["train"].columns) == ["text", "label"]


def test_a_readme_says_the_splits(tmp_path: Path) -> None:
    folder = write(tmp_path, ("one/cat/1.png", "one/dog/2.png", "two/cat/3.png"))
    parts = "{split: train, path: 'one/**'}, {split: test, path: 'two/**'}"
    said = f"configs: [{{config_name: a, data_files: [{parts}]}}]"
    (folder / "README.md").write_text(f"---\n{said}\n---\n")
    assert {split: table.columns["label"] for split, table in read_folder(folder).items()} == {
        "train": ["cat", "dog"], "test": ["cat"]
    }  # fmt: skip


def test_images_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, 4)
    assert [image.name for image in images_in(tmp_path).columns["image"]] == [
        "dark/0.png", "dark/2.png", "light/1.png", "light/3.png"
    ]  # fmt: skip
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no images"):
        images_in(tmp_path / "none")
