"""What the heads of a search read: asked for or probed, and alike for trials, finalists and baselines."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.saved_model import small_search

import autopeft
from autopeft.errors import CompositionError, UsageError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooled, pooling_of, unpooled
from autopeft.search.planning import probes
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare
from autopeft.search.space.projection import values_of
from autopeft.tasks.kinds import get_kind
from autopeft.training.pooling import PoolingFinding

MEAN = PoolingFinding("mean", own=0.61, mean=0.45)


def prepared(folder: Path, said: list[str] | None = None, **more: Any) -> Prepared:
    notify = None if said is None else said.append
    return prepare(SearchArguments(**small_search(folder, **more)), notify)


def readings(ready: Prepared) -> set[tuple[str, ...]]:
    """What pools in recipes of the space and of the baselines."""
    rng, bound = random.Random(0), ready.space.bind(ready.spec)
    recipes = [bound.materialize(bound.sample(rng)) for _ in range(3)]
    recipes += [Recipe.from_dict(dict(r)) for b in ready.baselines() for r in b.candidates]
    return {pooling_of(recipe).methods for recipe in recipes}


def test_a_probe_decides_for_all_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "find_pooling", lambda *_, **__: MEAN)
    said: list[str] = []
    ready = prepared(tmp_path, said, pooling="auto")
    assert readings(ready) == {("mean_pooling",)}
    assert MEAN.sentence() in said
    assert ready.manifest()["pooling"] == "mean"
    monkeypatch.setattr(probes, "find_pooling", lambda *_, **__: None)
    assert readings(prepared(tmp_path, pooling="auto")) == {()}


def test_the_probe_looks_at_the_tasks_rows(tmp_path: Path) -> None:
    ready = prepared(tmp_path, pooling="own")
    found = probes.find_pooling(ready.source, ready.task, ready.plan, ready.spec)
    assert found is not None
    assert (found.pooling, found.mean < 0.5 * found.own) == (
        "mean",
        True,
    )  # the verdict is what words there are


def test_a_probe_that_fails_leaves_it_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("index 40 is out of range.")

    monkeypatch.setattr(probes, "find_pooling", failing)
    said: list[str] = []
    assert readings(prepared(tmp_path, said, pooling="auto")) == {()}
    assert "The head reads what the model gives it: a probe failed (index 40 is out of range)." in said


def test_a_space_that_has_the_place_of_the_mean_goes_without(tmp_path: Path) -> None:
    space = tmp_path / "coda.yaml"
    space.write_text("autopeft: 2\nname: c\nlayers:\n  - attach: [{coda: {bottleneck: {choice: [1, 2]}}}]\n")
    assert readings(prepared(tmp_path, pooling="auto", space=str(space), budget="90%")) == {()}
    with pytest.raises(CompositionError, match="coda and mean_pooling"):
        prepared(tmp_path, pooling="mean", space=str(space), budget="90%")


def test_both_readings_have_the_same_baselines(tmp_path: Path) -> None:
    found = [
        [
            (b.kind, len(b.candidates))
            for b in prepared(tmp_path, pooling=one, space="default", baselines="all").baselines()
        ]
        for one in ("own", "mean")
    ]
    assert found[0] == found[1]
    assert "single" in {kind for kind, _ in found[0]}


@pytest.mark.parametrize("more", [{"serve": "peft", "pooling": "auto"}, {"pooling": "own"}])
def test_what_is_to_be_a_plain_model_is_not_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.setattr(probes, "find_pooling", lambda *_, **__: pytest.fail("it was probed"))
    assert readings(prepared(tmp_path, **more)) == {()}


@pytest.mark.parametrize(("more", "processes"), [({"quantize": "int8"}, 1), ({}, 2)])
def test_packed_and_divided_backbones_are_not_probed(more: dict[str, Any], processes: int) -> None:
    nothing: Any = None  # is looked at
    asked = SearchArguments(task="trec", budget="1%", **more)
    assert (
        probes.pooling_of_search(asked, nothing, nothing, nothing, nothing, nothing, processes, None) == "own"
    )


def test_the_mean_cannot_be_served_nor_read_by_heads_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="serve='peft' asks for one; leave one of them out"):
        prepared(tmp_path, pooling="mean", serve="peft")
    asked = SearchArguments(task="trec", budget="1%", pooling="mean")
    task: Any = SimpleNamespace(task_kind=get_kind("token_classification"))
    nothing: Any = None  # else is looked at
    with pytest.raises(UsageError, match="token_classification read several"):
        probes.pooling_of_search(asked, nothing, nothing, task, nothing, nothing, 1, None)


def test_a_recipe_and_its_point_have_each_other(tmp_path: Path) -> None:
    """With or without the reading that all recipes of the space have."""
    ready = prepared(tmp_path, pooling="mean")
    bound = ready.space.bind(ready.spec)
    recipe = bound.materialize(bound.sample(random.Random(1)))
    for given in (recipe, unpooled(recipe)):
        match = values_of(given, bound)
        assert match.exact
        found = (build_graph(r, ready.spec) for r in (bound.materialize(match.values), recipe))
        assert len({graph.trial_hash() for graph in found}) == 1
    # What all recipes have is no difference, where others are.
    far = Recipe.from_dict({"layers": [{"attach": ["ia3", {"lora": {"rank": 4}}]}]})
    apart = [values_of(given, bound) for given in (far, pooled(far, "mean"))]
    assert apart[0] == apart[1]
    assert apart[0].missing
    assert not any("mean_pooling" in words for words in apart[0].missing)
    other = replace(ready.space, pooling="own").bind(ready.spec)
    lost = values_of(recipe, other)
    assert not lost.exact
    assert any("mean_pooling" in words for words in lost.missing)


def test_a_winner_keeps_its_reading(tmp_path: Path) -> None:
    arguments = small_search(tmp_path, pooling="mean", trials=2, steps=4, workers=0)
    result = autopeft.search(**arguments)
    winner = Recipe.from_file(tmp_path / "run" / "recipe.yaml")
    assert pooling_of(winner).methods == ("mean_pooling",)
    assert winner == pooled(winner, "mean")
    texts = ["an unexpectedly moving film", "it was dull, and far too long"]
    first = autopeft.predict(result, texts)
    again = autopeft.predict(tmp_path / "run", texts)
    assert first == again
    with pytest.raises(Exception, match="search with --pooling own"):
        autopeft.export(result, out=tmp_path / "merged", format="merged")
