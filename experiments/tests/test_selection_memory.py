"""The experiment over the memory of selections: its recipes and its table; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig

from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.method import get_method
from autopeft.recipe import Recipe

FOLDER = "selection_memory"
LLAMA = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


def test_every_selective_method_is_measured_or_refused_by_a_llama(run: Any) -> None:
    refused = run.refused(LLAMA)
    assert set(refused) == {"bitfit", "u_bitfit", "s_bitfit", "xattn_tuning"}
    assert "biases" in refused["bitfit"]
    measured = {name.partition(" ")[0] for name in run.RECIPES} - {"lora"}
    assert measured | set(refused) == set(run.selective())
    assert not measured & set(refused)
    assert "bitfit" not in run.refused(BertConfig())


def test_each_recipe_has_its_method(run: Any) -> None:
    for name, body in run.RECIPES.items():
        recipe = Recipe.from_dict(dict(body))
        methods = [e.method.name for e in build_graph(recipe, spec_of(LLAMA)).entries.values()]
        methods += [p.method for p in recipe.training.policies]
        assert get_method(name.partition(" ")[0]).name in methods


def test_the_table_says_what_is_within_the_limit(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"lora": {"peak_gb": 1.4, "cpu_seconds": 9.0}, "lt_sft": {"peak_gb": 6.01, "cpu_seconds": 1.0}}
    run.tables(found, {"bitfit": "it has none"})
    told = "".join(capsys.readouterr())
    within = {name: line for name in found for line in told.splitlines() if name in line}
    assert "yes" in within["lora"]
    assert "no" in within["lt_sft"]
    assert "bitfit: it has none" in told
