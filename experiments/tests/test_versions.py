"""CPU time of two versions: all processes count, pairs go on where they stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.storage import append_row, read_rows

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
ORPHAN = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {!r}])\n"
FOLDER = "versions"


@pytest.fixture(scope="module")
def versions(load: Callable[[str], Any]) -> Any:
    return load("run")


def test_what_outlives_its_parent_counts(versions: Any, tmp_path: Path) -> None:
    found = versions.cpu_of([sys.executable, "-c", ORPHAN.format(BURN.format(1.0))], tmp_path)
    assert 0.8 <= found <= 2.0


def test_a_command_that_fails_is_said(versions: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: alas"):
        versions.cpu_of([sys.executable, "-c", "print('alas'); raise SystemExit(3)"], tmp_path)


def test_pairs_change_sides_and_go_on_where_they_stopped(
    versions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def cpu(command: list[str], folder: Path, *, cold: bool) -> float:
        seen.append(f"{command[0]}, cold" if cold else command[0])
        return 2.0 if command[0] == "old" else 3.0

    monkeypatch.setattr(versions, "cpu_of", cpu)
    monkeypatch.setattr(versions, "_version", lambda python: f"version {python}")
    rows = tmp_path / "pairs.jsonl"
    assert versions.pairs(("old", "new"), ["search"], 2, rows) == [[2.0, 3.0]] * 2
    assert seen == ["old", "new", "new", "old"]
    append_row(rows, {"key": {"command": ["other"], "versions": []}, "seconds": [1.0, 9.0]})
    assert versions.pairs(("old", "new"), ["search"], 3, rows) == [[2.0, 3.0]] * 3
    assert seen[4:] == ["old", "new"]
    assert len(read_rows(rows)) == 4
    assert versions.pairs(("old", "new"), ["search"], 1, rows, cold=True) == [[2.0, 3.0]]
    assert seen[6:] == ["old, cold", "new, cold"]
    assert "geometric mean 1.500, upper 95 % bound 1.500" in versions.verdict([[2.0, 3.0]] * 3)


def test_a_cold_command_has_a_cache_of_its_own_with_what_was_fetched(
    versions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "own"))
    (tmp_path / "own" / "assets" / "model").mkdir(parents=True)
    (tmp_path / "own" / "trunk").mkdir()
    told = "import os; print(*sorted(os.listdir(os.environ['AUTOPEFT_CACHE'])))"
    for name, cold, there in (("a", True, "assets"), ("b", True, "assets"), ("c", False, "assets trunk")):
        folder = tmp_path / name
        folder.mkdir()
        versions.cpu_of([sys.executable, "-c", told], folder, cold=cold)
        assert (folder / "out.txt").read_text().strip() == there


def test_each_command_in_each_two_versions_has_its_verdict(versions: Any) -> None:
    def row(command: str, new: str, seconds: list[float]) -> dict[str, Any]:
        return {"key": {"command": [command], "versions": ["a" * 40, new * 40]}, "seconds": seconds}

    told = versions.tables(
        [row("search", "b", [2.0, 3.0]), row("search", "c", [2.0, 1.0]), row("search", "b", [4.0, 6.0])]
    )
    first, second = told.splitlines()
    assert first.startswith("- `search`, aaaaaaaa against bbbbbbbb: 2 pairs, new/old: geometric mean 1.500")
    assert second == "- `search`, aaaaaaaa against cccccccc: 1 pair, new/old: 0.500."


def test_the_bound_is_that_of_the_logarithms(versions: Any) -> None:
    mean, bound = versions.upper([1.0, 1.1, 1.21])
    assert mean == pytest.approx(1.1)
    assert bound == pytest.approx(1.1 * 1.1 ** (2.919986 / 3**0.5))  # t of 2 degrees at 95 %, one-sided
    assert versions.upper([1.2])[1] == float("inf")
