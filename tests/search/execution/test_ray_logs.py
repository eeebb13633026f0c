from __future__ import annotations

import os
from pathlib import Path

import pytest

from autopeft.errors import AutoPEFTError
from autopeft.search.execution import ray_logs
from autopeft.search.execution.ray_logs import keep_logs, kept_on_error


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session of Ray's: an old file, a new one, a binary one, an empty one, and one in a folder."""
    real = tmp_path / "ray" / "session_1"
    (real / "logs" / "old").mkdir(parents=True)
    (tmp_path / "ray" / "session_latest").symlink_to(real)
    for age, (name, data) in enumerate(
        {
            "raylet.out": b"r" * 900 + b"the end",
            "gcs_server.err": b"head",
            "core.log": b"\0\1\2",
            "empty.out": b"",
            "old/raylet.err": b"inside",
            "weights.bin": b"no log",
        }.items()
    ):
        (real / "logs" / name).write_bytes(data)
        os.utime(real / "logs" / name, (1000 - age, 1000 - age))
    return tmp_path / "ray"


def kept(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_text_is_kept_within_bounds(session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_logs, "_MOST_EACH", 10)
    monkeypatch.setattr(ray_logs, "_MOST", 17)
    assert keep_logs(session / "session_latest", tmp_path / "kept") == 3
    found = kept(tmp_path / "kept")
    assert found == {"raylet.out": b"rrrthe end", "gcs_server.err": b"head", "old-raylet.err": b"ide"}


def test_an_error_names_the_folder(session: Path, tmp_path: Path) -> None:
    said = r"^Ray ended\. Ray's own logs are kept in '.*kept'\.$"
    with pytest.raises(AutoPEFTError, match=said), kept_on_error(session, tmp_path / "kept"):
        raise AutoPEFTError("Ray ended.")
    assert kept(tmp_path / "kept").keys() == {"raylet.out", "gcs_server.err", "old-raylet.err"}


def test_another_error_goes_on_as_it_is(session: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), kept_on_error(session, tmp_path / "kept"):
        _ = 1 / 0
    assert (tmp_path / "kept").is_dir()


def test_without_an_error_nothing_is_kept(session: Path, tmp_path: Path) -> None:
    with kept_on_error(session, tmp_path / "kept"):
        pass
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("where", ["gone/ray", None])
def test_where_they_cannot_be_kept_the_error_is_told_all_the_same(
    session: Path, tmp_path: Path, where: str | None
) -> None:
    target = None if where is None else tmp_path / where
    with pytest.raises(AutoPEFTError, match=r"^Ray ended\.$"), kept_on_error(session, target):
        raise AutoPEFTError("Ray ended.")
    assert not (tmp_path / "gone").exists(), "a run folder that was removed is not made again"
