from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import UsageError
from autopeft.report.html import render_report
from autopeft.report.html.load import read_run
from autopeft.runs.folder import RunFolder

Make = Callable[..., RunFolder]
Edit = Callable[[Path, Callable[[Any], Any]], None]


def test_a_finished_run(make_run: Make) -> None:
    run = read_run(make_run(trials=12))
    assert run.state == "finished"
    assert not run.fixed
    assert run.problems == ()
    assert run.metric == "accuracy"
    assert run.winner is not None
    assert run.winner.test == (0.70, 0.71, 0.72)
    assert [b.name for b in run.baselines] == ["LoRA rank 4", "head only"]
    assert {r.state for r in run.complete} == {"complete"}


def test_the_front_of_a_run_that_is_not_over(make_run: Make) -> None:
    """It holds neither stopped trials, which would be compared with full ones, nor duplicates."""
    folder = make_run(trials=20, finished=False)
    run = read_run(folder)
    assert run.state == "unfinished"
    assert run.winner is None
    complete = {r["number"]: r for r in folder.lines() if r["state"] == "complete"}
    assert {p.number for p in run.front} <= set(complete)
    for point in run.front:
        beaten = [
            r
            for r in complete.values()
            if r["counts"]["deployed"] <= point.deployed and r["score"] > point.score
        ]
        assert not beaten
    assert max(p.score for p in run.front) == max(r["score"] for r in complete.values())


def test_the_best_so_far_is_complete_and_of_equals_the_smaller(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=8, finished=False)
    lines = folder.lines()
    for r in lines:
        r["score"] = 0.9 if r["number"] in (1, 2, 6) else 0.1
    lines[6]["state"] = "stopped"
    lines[1]["counts"]["deployed"], lines[2]["counts"]["deployed"] = 20, 10
    folder.write_lines("trials.jsonl", lines)
    best = read_run(folder).best
    assert best is not None
    assert best.number == 2


def test_the_written_front_goes_first(make_run: Make) -> None:
    folder = make_run(trials=4)
    point = {"number": 1, "deployed": 7, "share": 0.1, "score": 0.5, "hash": "h", "name": "n"}
    folder.write_json("front.json", [point, {**point, "deployed": "x"}, {}])
    run = read_run(folder)
    assert [p.deployed for p in run.front] == [7]
    (problem,) = run.problems
    assert problem.startswith("2 points of front.json")


@pytest.mark.parametrize("name", ["result.json", "trials.jsonl", "finals.jsonl", "front.json"])
@pytest.mark.parametrize("text", ["{", "[1, 2]\n", "\xff", "[" * 100_000 + "\n"])
def test_what_cannot_be_read_is_named_and_the_rest_is_there(make_run: Make, name: str, text: str) -> None:
    folder = make_run(trials=4)
    (folder.path / name).write_bytes(text.encode("latin-1"))
    run = read_run(folder)
    torn = name.endswith("jsonl") and not text.endswith("\n")  # a line that is being written: left out
    assert len(run.problems) == (0 if torn else 1)
    assert all(name in problem for problem in run.problems)
    assert run.manifest["task"] == "toy"


HOSTILE: list[Any] = [None, "x", [], {"a": []}, 10**400, True, math.nan, -1]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: str(value)[:8])
def test_lines_of_any_content_are_shown_or_counted(make_run: Make, value: Any) -> None:
    """What is a record has its row, whatever stands beside it."""
    folder = make_run(trials=8, finished=False)
    (line, *_) = folder.lines()
    hostile = [{**line, "number": 100, key: value} for key in line]
    with (folder.path / "trials.jsonl").open("a") as file:
        file.writelines(json.dumps(h) + "\n" for h in (*hostile, dict.fromkeys(line, value), value))
    run = read_run(folder)
    (problem,) = run.problems
    left_out = int(problem.split()[0]) if problem[0].isdigit() else 1
    assert "trials.jsonl" in problem
    assert len(run.trials) == 7 + len(hostile) + 2 - left_out
    page = render_report(folder)
    assert problem in page
    assert "trial 4" in page


def test_without_a_manifest_it_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json"):
        read_run(RunFolder(tmp_path))


def test_a_fixed_recipe_has_means_of_one_seed(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=1)
    result = {"kind": "train", "select_mean": 0.6, "test_mean": 0.5, "counts": {"deployed": 7}, "recipe": {}}
    (folder.path / "result.json").write_text(json.dumps(result))
    run = read_run(folder)
    assert run.fixed
    assert run.winner is not None
    assert (run.winner.select, run.winner.test, run.winner.deployed) == ((0.6,), (0.5,), 7.0)
