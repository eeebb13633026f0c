"""A search begins with the portfolio, unless it is told not to or the task is of another kind."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone, write_reviews

from autopeft.runs.folder import RunFolder
from autopeft.search import api
from autopeft.search.controller.checkpoints import FolderCheckpoints
from autopeft.search.planning import prepare as planning
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    data, model = write_reviews(tmp_path / "data.csv"), save_backbone(tmp_path / "model")
    return {
        "task": str(data), "model": str(model), "text": "body", "label": "verdict", "budget": "5%",
        "space": "lora", "trials": 12, "max_length": 32,
    }  # fmt: skip


served: list[str | None] = []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    served.clear()

    def points(bound: Any, budget: Any, rows: int, trials: int, *, leave_out: Any, serve: Any) -> Any:
        served.append(serve)
        calls.append((str(budget), rows, trials, tuple(leave_out)))
        return [{"rank": 3}], "The search begins with the portfolio: it."

    monkeypatch.setattr(api, "portfolio_points", points)
    return calls


class Opened(Exception):  # noqa: N818
    """Stands for a strategy that begins; it has the points that were handed to it."""


def first(ready: Prepared) -> tuple[list[dict[str, Any]], list[str]]:
    said: list[str] = []

    def opened(**given: Any) -> None:
        raise Opened(given["first"])

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(api, "StrategyContext", opened)
        run = RunFolder.create("t", "k", root=folder)
        with pytest.raises(Opened) as began:
            api._open_strategy(ready, run, FolderCheckpoints(run.path / "files"), said.append)
    (points,) = began.value.args
    return points, said


def test_the_portfolio_comes_first(place: dict[str, Any], asked: list[Any]) -> None:
    ready = prepare(SearchArguments(**place))
    points, said = first(ready)
    assert points[0] == {"rank": 3}
    assert len(points) > 1
    assert said == ["The search begins with the portfolio: it."]
    assert asked == [("5%", len(ready.task.splits["train"]), 12, ())]
    assert ready.manifest()["arguments"]["portfolio"] is True


def test_it_is_told_how_what_is_found_is_to_be_served(place: dict[str, Any], asked: list[Any]) -> None:
    first(prepare(SearchArguments(**place, serve="merged")))
    assert (len(asked), served) == (1, ["merged"])


def test_what_else_is_tried_first_leaves_it_less(
    place: dict[str, Any], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = [{"rank": rank} for rank in range(5)]
    monkeypatch.setattr(planning, "points_from", lambda *_, **__: (earlier, []))
    points, _ = first(prepare(SearchArguments(**{**place, "trials": 8})))
    assert points[:6] == [*earlier, {"rank": 3}]
    assert [trials for _, _, trials, _ in asked] == [3]
    first(prepare(SearchArguments(**{**place, "trials": 4})))
    assert [trials for _, _, trials, _ in asked] == [3, 0]


def test_a_cheap_search_tries_the_upper_layers_too(
    place: dict[str, Any], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "upper_points", lambda _, count: [{"rank": 10 + i} for i in range(count)])
    ready = replace(prepare(SearchArguments(**{**place, "trials": 8})), cost="step_cost")
    points, _ = first(ready)
    assert points[:3] == [{"rank": 3}, {"rank": 10}, {"rank": 11}]
    assert [trials for _, _, trials, _ in asked] == [6]


def test_it_can_be_left_away(place: dict[str, Any], asked: list[Any]) -> None:
    points, said = first(prepare(SearchArguments(**place, portfolio=False)))
    assert {"rank": 3} not in points
    assert (said, asked) == ([], [])


def test_another_kind_of_task_begins_without(place: dict[str, Any], asked: list[Any], tmp_path: Path) -> None:
    rows = "".join(f"film {'good ' * (i % 9)},{i / 7:.3f}\n" for i in range(80))
    (tmp_path / "numbers.csv").write_text("text,label\n" + rows)
    other = {**place, "task": str(tmp_path / "numbers.csv"), "text": "text", "label": "label"}
    first(prepare(SearchArguments(**other, kind="regression")))
    assert asked == []


def test_a_packaged_tasks_cluster_is_left_out(place: dict[str, Any], asked: list[Any]) -> None:
    named = {k: v for k, v in place.items() if k not in ("text", "label")}
    first(prepare(SearchArguments(**{**named, "task": "trec-fine"}, train_rows=100)))
    assert asked == [("5%", 100, 12, ("trec",))]
