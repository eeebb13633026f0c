"""The size of a saved hybrid, known before it exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.cases import ON_ENCODERS, recipe_of
from support.tiny import ARCHITECTURES, tiny_model
from transformers import AutoModelForSequenceClassification

from autopeft.backbones import on_meta, spec_of
from autopeft.graph import build_graph
from autopeft.hybrid import attach, head_of
from autopeft.hybrid.store import WEIGHTS
from autopeft.recipe import Recipe
from autopeft.resources import file_bytes

MOST = 0.01


@pytest.mark.parametrize("case", ON_ENCODERS)
def test_it_is_what_saving_writes(case: str, tmp_path: Path) -> None:
    model = tiny_model("bert")
    head = head_of(on_meta(model.config, AutoModelForSequenceClassification))
    predicted = file_bytes(build_graph(recipe_of(case), spec_of(model.config)), head)
    with attach(model, recipe_of(case), seed=0) as hybrid:
        hybrid.save(tmp_path)
    assert predicted == pytest.approx((tmp_path / WEIGHTS).stat().st_size, rel=MOST)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_every_architecture(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    body = [{"lora": {"rank": 3}}, {"parallel_adapter": {"bottleneck": 4}}]
    recipe = Recipe.from_dict({"layers": [{"attach": [{"sum": body}, "ia3"]}]})
    with attach(model, recipe, seed=0) as hybrid:
        predicted = file_bytes(hybrid.graph, hybrid.head())
        hybrid.save(tmp_path)
    assert predicted == (tmp_path / WEIGHTS).stat().st_size


def test_the_head_counts() -> None:
    model = tiny_model("bert")
    graph = build_graph(Recipe.from_dict({"layers": [{"attach": ["ia3"]}]}), spec_of(model.config))
    head = head_of(on_meta(model.config, AutoModelForSequenceClassification))
    numbers = sum(p.numel() for p in head.values())
    assert numbers
    assert file_bytes(graph, head) - file_bytes(graph, {}) >= 4 * numbers


def test_the_drawing_of_weights_goes_on_as_if_nothing_had_been_built() -> None:
    model = tiny_model("bert")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    file_bytes(build_graph(recipe_of("lora"), spec_of(model.config)), {})
    assert torch.equal(torch.rand(1), expected)


def test_a_recipe_without_entries_is_its_head() -> None:
    model = tiny_model("bert")
    head = head_of(on_meta(model.config, AutoModelForSequenceClassification))
    empty = build_graph(Recipe(name="none"), spec_of(model.config))
    assert file_bytes(empty, head) > 4 * sum(p.numel() for p in head.values())
