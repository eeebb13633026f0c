from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.search.controller.checkpoints import Clock, FolderCheckpoints


def test_a_store_replaces_keeps_and_drops(tmp_path: Path) -> None:
    checkpoints = FolderCheckpoints(tmp_path / "files")
    assert checkpoints.get("a") is None
    checkpoints.put("a", {"x": b"1", "y": b"2"})
    checkpoints.put("a", {"x": b"3"})
    assert checkpoints.get("a") == {"x": b"3"}
    assert FolderCheckpoints(tmp_path / "files").get("a") == {"x": b"3"}
    checkpoints.drop("a")
    checkpoints.drop("never")
    assert checkpoints.get("a") is None
    assert list((tmp_path / "files").iterdir()) == []


def test_a_kill_while_replacing_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    FolderCheckpoints(folder).put("a", {"x": b"old"})
    left: list[None] = []
    rename = Path.rename

    class Killed(BaseException):
        pass

    def dying(self: Path, target: Path) -> Path:
        if not left:
            raise Killed
        left.pop()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    for renames in (0, 1):
        left[:] = [None] * renames
        with pytest.raises(Killed):
            FolderCheckpoints(folder).put("a", {"x": b"new"})
        assert FolderCheckpoints(folder).get("a") == {"x": b"old"}
        assert FolderCheckpoints(folder).keys() == ("a",)
    monkeypatch.undo()
    FolderCheckpoints(folder).put("a", {"x": b"new"})
    assert FolderCheckpoints(folder).get("a") == {"x": b"new"}
    assert [p.name for p in folder.iterdir()] == ["a"]


def test_a_folder_that_takes_nothing_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("no folder")
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        FolderCheckpoints(tmp_path / "files").put("a", {"x": b"1"})


def test_seconds_add_up_over_processes(tmp_path: Path) -> None:
    file = tmp_path / "clock.json"
    first = Clock(file)
    assert first.before == 0.0
    first.write(12.5)
    second = Clock(file)
    second.write(7.5)
    assert Clock(file).before == 20.0
    file.write_text("[]")
    with pytest.raises(UsageError, match=r"clock\.json"):
        Clock(file)
