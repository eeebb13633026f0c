"""Folders from strangers: links lead out of none, and JSON in them is read within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.folders import own_folder
from support.permissions import modes_hold, sealed

from autopeft.errors import UsageError
from autopeft.foreign import check_inside, file_in, in_folder, read_json_in, read_table_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return own_folder(tmp_path)


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
            read_json_in(folder, name)


def test_links_out_to_what_is_not_there_are_not_followed_either(folder: Path) -> None:
    """Whoever writes to such a link makes the file that it leads to."""
    new = folder.parent / "new"
    (folder / "out").symlink_to("../new")
    (folder / "absolute").symlink_to(new)
    (folder / "chain").symlink_to("inner/next")
    (folder / "inner" / "next").symlink_to("../out")
    (folder / "missing").symlink_to(folder.parent / "none")
    (folder / "inside").symlink_to("inner/none")
    for name in ("out", "absolute", "chain", "inner/next", "missing", "missing/below", "inner/../out"):
        with pytest.raises(UsageError, match="leads out of its folder"):
            file_in(folder, name)
    for name in ("inside", "inside/below"):
        assert file_in(folder, name) is None
    assert not new.exists()


def test_a_folder_that_is_itself_a_link_is_the_users_own_choice(folder: Path) -> None:
    (folder.parent / "link").symlink_to("own")
    assert file_in(folder.parent / "link", "a") == folder.parent / "link" / "a"
    (folder.parent / "dangling").symlink_to("none")
    assert file_in(folder.parent / "dangling", "a") is None


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
    assert in_folder("hybrid.json", snapshot)
    assert not in_folder("refs", snapshot)
    assert in_folder("../../blobs/none", snapshot)
    assert not in_folder("../../blobs2", snapshot)
    with pytest.raises(UsageError, match="leads out"):
        file_in(snapshot, "refs")
    (snapshot / "gone").symlink_to("../../blobs/4567")
    assert file_in(snapshot, "gone") is None, "a blob that was not fetched"


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
        read_json_in(folder, "a")


def test_json_that_is_none_is_told_with_its_line(folder: Path) -> None:
    for content, said in (
        (b'{\n"a": \xff}', "not UTF-8 text: line 2"),
        (b'{\n"a"}', "line 2 column"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 101 + b"]" * 101, "more than 100 tables or lists"),
        (b'{"a": [' * 60 + b"]}" * 60, "more than 100 tables or lists"),
        (b"9" * 5_000, "not valid JSON"),
        (b"[1]", "does not hold a JSON object"),
    ):
        (folder / "a").write_bytes(content)
        with pytest.raises(UsageError, match=said) as caught:
            read_table_in(folder, "a")
        assert str(folder / "a") in str(caught.value)
    with pytest.raises(UsageError, match="at most 2 bytes are read"):
        read_table_in(folder, "a", 2)
    with pytest.raises(UsageError, match=r"has no none\.json"):
        read_table_in(folder, "none.json")
    assert read_json_in(folder, "a") == [1]
    (folder / "a").write_bytes(b"[" * 100 + b"]" * 100)
    assert len(read_json_in(folder, "a")) == 1


@pytest.mark.parametrize("where", ["", "inner/"])
def test_a_folder_that_is_written_to_has_no_way_out(folder: Path, where: str) -> None:
    (folder / f"{where}link").symlink_to(folder / "a")
    (folder / f"{where}dangling").symlink_to("nothing")
    check_inside(folder)
    for target in (folder.parent / "secret", folder.parent, folder.parent / "new"):
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
