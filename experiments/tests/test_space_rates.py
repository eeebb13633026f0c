"""Methods and rates are those of the default space, and a lost seed is one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.recipe import EmptyRecipe
from autopeft.search.space.space import Space

FOLDER = "space_rates"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


def test_every_method_of_the_space_is_tried_and_can_be_built(run: Any) -> None:
    spec = spec_of(load_config(resolve_model("minilm")))
    bound, offered = Space.named("default").bind(spec), set[str]()
    for seed in range(400):
        with contextlib.suppress(EmptyRecipe):  # nothing is switched on
            drawn = bound.materialize(bound.sample(random.Random(seed)))
            offered |= {entry.method for entry in drawn.entries()}
    assert offered == set(run.METHODS) - {run.HEAD}
    for name in run.METHODS:
        built = build_graph(run.recipe(name, 1e-3), spec)
        assert (len(built.entries) == 0) == (name == run.HEAD)


def test_the_highest_rate_is_the_spaces(run: Any) -> None:
    from autopeft.search.space.bound import BoundSpace

    bound: BoundSpace = Space.named("default").bind(spec_of(load_config(resolve_model("minilm"))))
    highest = {p.name: p.high for p in bound.parameters if "learning_rate" in p.name}  # type: ignore[attr-defined]
    assert {rate for rate, _ in run.METHODS.values()} == set(highest.values())


def test_what_is_lost(run: Any) -> None:
    assert run.lost([0.90, 0.89, 0.80], 0.5) == 1
    assert run.lost([0.90, 0.89, 0.86], 0.5) == 0
    assert run.lost([0.49, 0.49, 0.49], 0.5) == 3


def test_the_stable_rate_loses_no_seed_on_any_task(run: Any) -> None:
    def rows(rate: float, *scores: float, task: str = "trec", method: str = "ssf") -> list[dict[str, Any]]:
        return [
            {"task": task, "method": method, "rate": rate, "seed": i, "select": s}
            for i, s in enumerate(scores)
        ]

    high, middle, *_ = run.rates_of("ssf")
    told = [
        *rows(high, 0.9, 0.9, 0.5), *rows(high, 0.9, 0.9, 0.9, task="movie-sentences"),
        *rows(middle, 0.9, 0.9, 0.88), *rows(middle, 0.8, 0.8, 0.79, task="movie-sentences"),
    ]  # fmt: skip
    assert run.stable_rate(run._scores(told), "ssf") == middle
    # A method that ends below the head alone has lost all of its seeds.
    heads = rows(0.1, 0.95, 0.96, 0.97, method=run.HEAD)
    assert run.stable_rate(run._scores([*told, *heads]), "ssf") is None
    assert run.stable_rate(run._scores(told[:-1]), "ssf") is None, "a seed is missing"
    assert f"| ssf | 0.05 | {middle:g} | " in run.tables(told)
