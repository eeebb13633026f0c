"""A search on a backbone in 8 bits: it tries what can act there, and what it finds is used and exported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone, write_reviews

import autopeft
from autopeft.assets import load_config, quantization_of, resolve_model
from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.export.package import find_saved, load_hybrid
from autopeft.graph import build_graph, on_packed
from autopeft.recipe import Recipe
from autopeft.runs.folder import RunFolder
from autopeft.search.api import plan, search

pytest.importorskip("torchao")
DORA = Recipe.from_dict({"name": "dora", "layers": [{"attach": [{"dora": {"rank": 2}}, "ia3"]}]})


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dora.yaml").write_text(DORA.to_yaml())
    write_reviews(tmp_path / "reviews.csv")
    save_backbone(tmp_path / "bert")
    return {
        "task": "reviews.csv", "text": "body", "label": "verdict", "model": "bert", "quantize": "int8",
        "max_length": 16,
    }  # fmt: skip


def test_it_tries_what_can_act_and_the_winner_is_used_and_exported(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    found = search(
        **arguments, budget="10%", trials=4, steps=4, batch_size=8, warm_start=["dora.yaml"], workers=0,
        confirm=1, confirm_seeds=1, out=tmp_path / "run",
    )  # fmt: skip
    spec = spec_of(load_config(resolve_model("bert")))
    recipes = [Recipe.from_dict(dict(trial.recipe)) for trial in found.trials if trial.recipe]
    assert len(recipes) >= 4
    assert all(on_packed(build_graph(recipe, spec)) is None for recipe in recipes)
    manifest = RunFolder(tmp_path / "run").manifest()
    assert manifest["backbone"]["quantize"] == manifest["arguments"]["quantize"] == "int8"
    assert manifest["backbone"]["parameters"] == spec.parameters
    assert str(found.within) == "methods that leave weights in int8 alone"
    hybrid, _ = load_hybrid(find_saved("run"))
    assert quantization_of(hybrid.model) == "torchao, 8 bits"
    score = autopeft.evaluate("run").score
    on_plain = autopeft.evaluate("run", quantize="none").score
    assert math.isfinite(score)
    assert abs(score - on_plain) <= 0.5
    said: list[str] = []
    exported = autopeft.export("run", tmp_path / "out", notify=said.append)
    assert "int8" in said[-1]
    again, _ = load_hybrid(find_saved(exported.folder))
    assert quantization_of(again.model) == "torchao, 8 bits", "the exported package says how it was trained"


def test_a_plan_says_what_it_is_limited_to(arguments: dict[str, Any]) -> None:
    ready = plan(**arguments, budget="10%")
    assert str(ready.prepared.within) == "methods that leave weights in int8 alone"
    assert ready.prepared.source.quantize == "int8"
    assert ready.prepared.key() != plan(**{**arguments, "quantize": None}, budget="10%").prepared.key()


def test_a_recipe_on_packed_weights_is_refused_before_anything_is_loaded(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"int8.* dora "):
        autopeft.train(**arguments, recipe="dora.yaml", steps=2)
    assert not (tmp_path / "runs").exists()
