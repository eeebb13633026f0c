"""Only plain files are read, and paths that cannot be are one sentence."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from autopeft.errors import DataError, RecipeError, UsageError
from autopeft.foreign import in_folder, local_path, open_plain, read_plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 256, "longer than the 255 bytes"),
        ("ä" * 128, "longer than the 255 bytes"),
        ("x/" * 3000, "longer than the 255 bytes"),
        ("a\0b", "null character"),
        ("\ud800", "not Unicode"),
        ("~nosuchuser/x", "not known here"),
    ],
)
def test_what_no_file_can_be_called(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        local_path(text, DataError)
    assert len(str(caught.value)) < 400


def test_paths_as_people_type_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert local_path("~/a.csv") == Path("/somewhere/a.csv")
    assert local_path("x" * 255) == Path("x" * 255)
    assert local_path(Path("ä/b")) == Path("ä/b")


def test_plain_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert read_plain(tmp_path / "a", 3) == read_plain(tmp_path / "link", 3) == b"abc"
    with pytest.raises(UsageError, match="3 bytes, and at most 2 bytes"):
        read_plain(tmp_path / "a", 2)
    with open_plain(tmp_path / "a", 3) as file:
        assert file.read(1) == b"a"


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes to would be waited for, and a device has no end."""
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo("pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket")
    Path("loop").symlink_to("loop")
    for name, words in {
        "pipe": "a device, a pipe",
        "/dev/zero": "a device, a pipe",
        "/dev/null": "a device, a pipe",
        "socket": "cannot be read",
        "loop": "cannot be read",
        "nothing": r"cannot be read \(No such file",
        ".": "is a folder",
    }.items():
        with pytest.raises(RecipeError, match=words):
            read_plain(Path(name), 10, RecipeError)
    listening.close()


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """The kernel's own files say that they are empty."""
    with pytest.raises(UsageError, match="more than 3 bytes"):
        read_plain(Path("/proc/self/status"), 3)


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("a.csv", True),
        ("data/../a.csv", True),
        ("data", True),
        ("new.csv", True),
        ("../x.csv", False),
        ("data/../../x.csv", False),
        ("/etc/passwd", False),
        ("link/x.csv", False),
        ("link", False),
        ("~", False),
        ("~nosuchuser/x", False),
        ("a\0", False),
    ],
)
def test_what_lies_in_a_folder(path: str, inside: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    (folder / "a.csv").write_text("x")
    (folder / "link").symlink_to(tmp_path)
    assert in_folder(path, folder) is inside
    assert in_folder(str(folder / "a.csv"), folder)
