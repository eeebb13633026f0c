from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.errors import UsageError
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
