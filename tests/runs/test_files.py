"""Files that are written whole, with the mode and the name that the user wants."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from support.folders import own_folder

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.runs import files
from autopeft.runs.files import (
    cut_torn_line,
    empty_folder,
    is_there,
    make_folder,
    write_atomic,
    write_json,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return own_folder(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_new_files_have_the_mode_that_the_user_wants(folder: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(folder / "new", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_cut_short_leaves_nothing_beside_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_atomic(folder / "a", "old")
    before = sorted(folder.iterdir())

    def cut_short(handle: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", cut_short)
    with pytest.raises((KeyboardInterrupt, AutoPEFTError)):
        write_atomic(folder / "a", "new")
    assert (folder / "a").read_text() == "old"
    assert sorted(folder.iterdir()) == before


def test_a_name_as_long_as_names_can_be_is_written(folder: Path) -> None:
    name = "x" * 255
    write_atomic(folder / name, "all of it")
    assert (folder / name).read_text() == "all of it"
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        write_atomic(folder / f"{name}y", "nothing")
    assert sorted(p.name for p in folder.iterdir()) == ["a", "inner", name]


def test_names_that_nothing_can_have_are_refused_before_anything_is_computed(folder: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        for check in (is_there, lambda path: empty_folder(path, "--out")):
            with pytest.raises(UsageError, match="cannot be written"):
                check(folder / name)
    assert empty_folder(folder / "new", "--out") == folder / "new"
    (folder / "empty").mkdir()
    assert empty_folder(folder / "empty", "--out") == folder / "empty"
    (folder / "dangling").symlink_to("nothing")
    for name in ("a", "inner", "dangling"):
        with pytest.raises(UsageError, match="not an empty folder; choose another --out"):
            empty_folder(folder / name, "--out")


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_what_follows_the_last_line_end_is_cut(
    folder: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", block)
    for content, left in (
        (b"", b""),
        (b"whole\n", b"whole\n"),
        (b"one\ntwo\ntorn", b"one\ntwo\n"),
        (b"one\n" + b"x" * 100, b"one\n"),
        (b"torn from the start", b""),
        (b"\n\n", b"\n\n"),
    ):
        (folder / "a").write_bytes(content)
        cut_torn_line(folder / "a")
        assert (folder / "a").read_bytes() == left
    cut_torn_line(folder / "none")
    assert not (folder / "none").exists()
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        cut_torn_line(folder / "inner")


def test_json_holds_what_a_strangers_json_said(folder: Path) -> None:
    """Python reads figures that are not finite and halves of surrogate pairs; strict UTF-8 JSON has none."""
    value = json.loads('{"a": NaN, "b": [1e999, 2.5], "c": "half \\ud800 é"}')
    write_json(folder / "new.json", value)
    written = (folder / "new.json").read_text(encoding="utf-8")
    assert "half \\ud800 é" in written
    assert json.loads(written) == {"a": None, "b": [None, 2.5], "c": "half \ud800 é"}


def test_a_folder_is_made_where_nothing_else_has_its_name(folder: Path) -> None:
    for _ in range(2):
        make_folder(folder / "new")
    assert (folder / "new").is_dir()
    with pytest.raises(AutoPEFTError, match="File exists"):
        make_folder(folder / "a")
