from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from autopeft.errors import AutoPEFTError
from autopeft.search.execution import ray_token
from autopeft.search.execution.ray_token import secure_token, token_hint


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_its_owners_from_the_first_moment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    plain = os.open

    def watched(path: Path, flags: int, *more: int) -> int:
        descriptor = plain(path, flags, *more)
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    before = os.umask(0)
    try:
        monkeypatch.setattr(ray_token.os, "open", watched)
        secure_token()
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    assert modes == [0o600]
    assert mode(token) == 0o600
    assert mode(token.parent) == 0o700
    assert len(token.read_text()) == 64
    assert list(token.parent.iterdir()) == [token]
    first = token.read_text()
    secure_token()
    assert token.read_text() == first


def test_a_token_that_others_could_read_is_made_its_owners(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("x")
    token.chmod(0o644)
    secure_token()
    assert mode(token) == 0o600
    assert token.read_text() == "x"


def test_the_token_of_a_search_that_was_first_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = home / ".ray" / "auth_token"

    def link(new: Path, target: Path) -> None:
        token.write_text("theirs")
        raise FileExistsError

    monkeypatch.setattr(ray_token.os, "link", link)
    secure_token()
    assert token.read_text() == "theirs"
    assert list(token.parent.iterdir()) == [token]


def test_without_hard_links_there_is_a_token_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(new: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(ray_token.os, "link", link)
    secure_token()
    assert mode(home / ".ray" / "auth_token") == 0o600


def test_one_that_the_environment_names_is_enough(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    secure_token()
    assert not (home / ".ray").exists()


def test_a_home_that_cannot_be_written_is_a_sentence(home: Path) -> None:
    (home / ".ray").write_text("a file")
    with pytest.raises(AutoPEFTError, match=r"auth_token.*RAY_AUTH_TOKEN.*--workers 0"):
        secure_token()


def test_the_hint_says_whether_there_is_a_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "this one has none" in token_hint()
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("x")
    assert "may be another" in token_hint()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "elsewhere"))
    assert "this one has none" in token_hint()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "may be another" in token_hint()
    assert "secret" not in token_hint()
