"""Order, statistics, and results in files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lib import measuring


def test_every_side_stands_at_every_place_once() -> None:
    orders = [measuring.rotated(["a", "b", "c"], repeat) for repeat in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert measuring.rotated(["a", "b", "c"], 3) == orders[0]
    assert measuring.rotated([], 2) == []


def test_sides_take_turns() -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[], int]:
        def run() -> int:
            calls.append(name)
            return len(calls)

        return run

    told: list[tuple[str, int, int]] = []
    found = measuring.interleave(
        {"a": side("a"), "b": side("b")}, 3, lambda name, repeat, result: told.append((name, repeat, result))
    )
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert told[2] == ("b", 1, 3)
    with pytest.raises(ValueError, match="repeats=0"):
        measuring.interleave({"a": side("a")}, 0)


def test_median_and_range() -> None:
    found = measuring.summarise([3.0, 1.0, 8.0, 2.0])
    assert found.to_dict() == {"median": 2.5, "low": 1.0, "high": 8.0, "count": 4}
    assert found.text() == "2.5 (1.0–8.0)"
    assert measuring.summarise([1234.5]).text(2) == "1,234.50"
    # Repeat by repeat: the ratio of the medians would be 2.
    assert measuring.ratios([2.0, 4.0, 9.0], [1.0, 4.0, 2.0]).median == 2.0
    assert measuring.ratios([2.0, 4.0, 9.0], [1.0, 4.0, 2.0]).high == 4.5
    with pytest.raises(ValueError, match="no values"):
        measuring.summarise([])
    with pytest.raises(ValueError):
        measuring.ratios([1.0, 2.0], [1.0])


def test_results_name_what_they_depend_on(tmp_path: Path) -> None:
    measuring.write_json(tmp_path / "deep" / "x.json", {"figure": 1})
    found = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert measuring.read_json(tmp_path / "deep" / "x.json") == found
    assert found["figure"] == 1
    assert found["environment"]["versions"]["torch"] == torch.__version__
    assert found["environment"]["cpu"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.json"]


def test_a_recorded_command_does_not_say_where_its_file_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "found.json"
    for given in (["--out", str(place)], [f"--out={place}"]):
        monkeypatch.setattr("sys.argv", ["a/b/run.py", "--model", "x", *given, "--steps", "3"])
        measuring.write_json(place, {})
        assert measuring.read_json(place)["command"] == ["b/run.py", "--model", "x", "--steps", "3"]


def test_results_do_not_make_a_commit_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        own = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *own, *words], check=True, capture_output=True)

    files = [tmp_path / "experiments" / name for name in ("lib/measuring.py", "cheapest/results/runs.jsonl")]
    monkeypatch.setattr(measuring, "__file__", str(files[0]))
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("1")
    assert measuring.commit() is None
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    found = measuring.commit()
    assert found is not None
    assert len(found) == 8
    files[1].write_text("2")
    assert measuring.commit() == found
    files[0].write_text("2")
    assert measuring.commit() == f"{found}+"
