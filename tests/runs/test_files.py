"""Files that are written whole, and files of strangers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from support.permissions import modes_hold, sealed

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.runs.files import (
    check_inside,
    copy_in,
    empty_folder,
    expanded,
    file_in,
    is_there,
    read_bytes_in,
    read_table_in,
    write_atomic,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own" / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text("theirs")
    (tmp_path / "own" / "a").write_text("mine")
    (tmp_path / "own" / "inner" / "b").write_text("mine too")
    return tmp_path / "own"


def test_links_inside_are_followed_and_links_out_are_not(folder: Path) -> None:
    (folder / "to-a").symlink_to("a")
    (folder / "inner" / "up").symlink_to("../a")
    assert file_in(folder, "to-a") == folder / "to-a"
    assert file_in(folder, "inner/up") == folder / "inner" / "up"
    assert file_in(folder, "inner/b") == folder / "inner" / "b"
    (folder / "out").symlink_to("../secret")
    (folder / "absolute").symlink_to(folder.parent / "secret")
    (folder / "away").symlink_to("..")
    for name in ("out", "absolute", "away/secret"):
        with pytest.raises(UsageError, match="leads out of its folder"):
            file_in(folder, name)
        with pytest.raises(UsageError, match="leads out of its folder"):
            copy_in(folder, name, folder.parent / "copy")
        with pytest.raises(UsageError, match="leads out of its folder"):
            read_bytes_in(folder, name, 100)
    assert not (folder.parent / "copy").exists()


def test_a_folder_that_is_itself_a_link_is_the_users_own_choice(folder: Path) -> None:
    (folder.parent / "link").symlink_to("own")
    assert file_in(folder.parent / "link", "a") == folder.parent / "link" / "a"


def test_files_of_the_hubs_cache_are_links_to_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--me--mine"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "blobs" / "0123").write_text("{}")
    (repository / "refs").write_text("not a blob")
    (snapshot / "hybrid.json").symlink_to("../../blobs/0123")
    (snapshot / "refs").symlink_to("../../refs")
    assert read_table_in(snapshot, "hybrid.json") == {}
    with pytest.raises(UsageError, match="leads out"):
        file_in(snapshot, "refs")


def test_what_is_no_plain_file_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    for name in ("pipe", "inner"):
        with pytest.raises(UsageError, match="not a plain file"):
            file_in(folder, name)
    with pytest.raises(UsageError, match=r"link to itself|Too many levels"):
        file_in(folder, "loop")
    (folder / "dangling").symlink_to("nothing")
    for name in ("none", "none/below", "a/below", "dangling"):
        assert file_in(folder, name) is None
    assert file_in(folder / "none", "a") is None
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(UsageError, match="cannot be read"):
            file_in(folder, name)


def test_what_nobody_may_look_at_says_so(folder: Path) -> None:
    with sealed(folder), modes_hold(), pytest.raises(UsageError, match="Permission denied"):
        file_in(folder, "a")
    with sealed(folder / "a"), modes_hold(), pytest.raises(UsageError, match="Permission denied"):
        read_bytes_in(folder, "a", 100)


def test_reading_is_bounded(folder: Path) -> None:
    assert read_bytes_in(folder, "a", 4) == b"mine"
    with pytest.raises(UsageError, match="more than 3 bytes"):
        read_bytes_in(folder, "a", 3)
    assert read_bytes_in(folder, "none", 3) is None


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_new_files_have_the_mode_that_the_user_wants(folder: Path, umask: int, mode: int) -> None:
    (folder / "source").write_text("x")
    (folder / "source").chmod(0o755)
    before = os.umask(umask)
    try:
        write_atomic(folder / "new", "x")
        copy_in(folder, "source", folder / "copied")
    finally:
        os.umask(before)
    for name in ("new", "copied"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == mode


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


def test_a_home_that_nobody_has_is_a_name_like_any_other() -> None:
    assert expanded("~no-such-user/x") == Path("~no-such-user/x")
    assert expanded("~") == Path.home()


@pytest.mark.parametrize("where", ["", "inner/"])
def test_a_folder_that_is_written_to_has_no_way_out(folder: Path, where: str) -> None:
    (folder / f"{where}link").symlink_to(folder / "a")
    (folder / f"{where}dangling").symlink_to("nothing")
    check_inside(folder)
    for target in (folder.parent / "secret", folder.parent):
        (folder / f"{where}out").symlink_to(target)
        with pytest.raises(UsageError, match="leads out of its folder"):
            check_inside(folder)
        (folder / f"{where}out").unlink()
    os.mkfifo(folder / f"{where}pipe")
    with pytest.raises(UsageError, match="not a plain file"):
        check_inside(folder)
    (folder / f"{where}pipe").unlink()
    with sealed(folder / "inner"), modes_hold(), pytest.raises(UsageError, match="Permission denied"):
        check_inside(folder)
