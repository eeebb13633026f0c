"""What lies in a folder of data, and the splits that names say."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.errors import DataError
from autopeft.tasks import listing
from autopeft.tasks.listing import is_image_file, listed_files, split_said


def test_hidden_files_and_linked_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("a/1.png", ".git/2.png", "__x__/3.png", "b/.4.png", "c.txt"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).touch()
    (tmp_path / "d" / "again").symlink_to(".")
    assert listed_files(tmp_path / "d", is_image_file) == ["a/1.png"]


def test_there_may_be_more_images_than_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MOST_FILES", 3)
    monkeypatch.setattr(listing, "_MOST_IMAGES", 5)
    for i in range(5):
        (tmp_path / f"{i}.png").touch()
    assert len(listed_files(tmp_path, is_image_file)) == 5
    (tmp_path / "5.png").touch()
    with pytest.raises(DataError, match="more than 3 files and folders, or 5 images"):
        listed_files(tmp_path, is_image_file)


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("my-dev_set", "validation"), ("eval 2", "test"), ("contest", None)],
)  # fmt: skip
def test_splits_are_said_by_words(name: str, split: str | None) -> None:
    assert split_said(name) == split
