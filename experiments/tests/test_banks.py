"""What the comparison of starts, merges and fusions compares, and what it concludes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.tasks import cluster_of

FOLDER = "banks"


@pytest.fixture(scope="module")
def banks(load: Callable[[str], Any]) -> SimpleNamespace:
    names: dict[str, Any] = {}
    for module in ("cells", "tables", "run"):
        names |= {name: value for name, value in vars(load(module)).items() if not name.startswith("_")}
    return SimpleNamespace(**names)


def test_a_target_is_given_nothing_that_saw_its_texts(banks: SimpleNamespace) -> None:
    for task in banks.TARGETS:
        for kind in banks.KINDS:
            given = banks.inputs_of(task, kind)
            own = {banks.named(s, kind) for s in banks.SOURCES if cluster_of(s) == cluster_of(task)}
            assert len(given) >= 2
            assert not own & set(given)
        assert banks.all_of(banks.cluster_name(task)).startswith("all_but_")


def test_each_contender_has_four_ways_that_can_be_built(banks: SimpleNamespace) -> None:
    task = "trec"
    ranked = {kind: banks.inputs_of(task, kind) for kind in banks.KINDS} | {"all": ["all_but_trec"]}
    spec = spec_of(tiny_config("bert"))
    for contender in banks.CONTENDERS:
        recipes = banks.options_of(contender, ranked, ranked["lora"])
        assert len(recipes) == 4
        assert len({recipe.to_yaml() for recipe in recipes}) == 4
        graph = build_graph(recipes[0], spec)
        others = {name for name in graph.recipe.inputs if name.startswith("trec")}
        assert not others, contender


def test_what_is_known_is_not_trained_again(banks: SimpleNamespace) -> None:
    everything = banks.missing([])
    assert (
        len(everything) == sum(len(banks.contenders(cell.rows)) for cell in banks.cells()) == 20 * 11 + 40 * 4
    )
    cell, contender = everything[0]
    row = {"task": cell.task, "rows": cell.rows, "draw": cell.draw, "contender": contender}
    assert len(banks.missing([row])) == len(everything) - 1
    halves = [banks.missing([], part, 2) for part in (0, 1)]
    assert sorted(map(str, halves[0] + halves[1])) == sorted(map(str, everything))


def test_differences_are_means_over_clusters(banks: SimpleNamespace) -> None:
    def row(task: str, draw: int, contender: str, score: float) -> dict[str, Any]:
        return {"task": task, "rows": 50, "draw": draw, "contender": contender, "test": [score, score]}

    rows = [
        *(row(task, 900, "fresh LoRA", 0.5) for task in ("trec", "movie-sentences")),
        row("movie-sentences", 901, "fresh LoRA", 0.6),
        row("trec", 900, "MerA", 0.6),
        row("movie-sentences", 900, "MerA", 0.54),
        row("movie-sentences", 901, "MerA", 0.62),
    ]
    found = banks.differences(rows, "MerA", "fresh LoRA", 50)
    assert found == {"trec": pytest.approx(10), "rotten-tomatoes": pytest.approx(3)}
    assert "| MerA | +6.50 ± " in banks.tables(rows)
    rows += [row("trec", 900, "fresh adapter", 0.55), row("movie-sentences", 900, "fresh adapter", 0.55)]
    assert "| 4 | MerA less fresh adapter | 50 | +2.00 ± " in banks.tables(rows)
