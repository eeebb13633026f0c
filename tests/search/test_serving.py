"""A search for what can be served: every trial can be, and the winner is exported so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder, write_chats
from support.saved_model import small_search

import autopeft
from autopeft.backbones import spec_of
from autopeft.graph import build_graph, unservable
from autopeft.recipe import Recipe
from autopeft.runs.folder import RunFolder
from autopeft.search.api import plan, search
from autopeft.search.space.repair import Infeasible

ADAPTERS = Recipe.from_dict(
    {"name": "adapters", "layers": [{"attach": [{"serial_adapter": {"bottleneck": 4}}, "ia3"]}]}
)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters.yaml").write_text(ADAPTERS.to_yaml())
    return {
        "task": str(write_chats(tmp_path / "chats.jsonl", 80)),
        "model": str(save_decoder(tmp_path / "llama")),
        "budget": "20%",
        "serve": "vllm",
        "max_length": 32,
        "batch_size": 8,
        "trials": 3,
        "steps": 4,
    }


@pytest.mark.slow
def test_trials_starting_points_and_lora_can_be_served_and_the_winner_is(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    found = search(
        **arguments, warm_start=["adapters.yaml"], workers=0, confirm=1, confirm_seeds=1, out=tmp_path / "run"
    )
    spec = spec_of(autopeft.assets.load_config(autopeft.assets.resolve_model("llama")))
    finals = RunFolder(tmp_path / "run").finals().records
    # The untuned backbone, and that with examples, are measured by and need no hybrid.
    recipes = [r.recipe for r in (*found.trials, *finals) if r.recipe and r.recipe.get("layers")]
    assert len(recipes) > 3
    for recipe in recipes:
        assert unservable(build_graph(Recipe.from_dict(recipe), spec), "vllm", head=False) is None
    assert RunFolder(tmp_path / "run").manifest()["arguments"]["serve"] == "vllm"
    assert any("can be served as vllm" in line for line in found.resource_sentences())
    exported = autopeft.export(found, tmp_path / "out", format="lora")
    assert exported.facts["exact"]
    assert {one["state"] for one in exported.facts["vllm"]} == {"kept"}


def test_a_plan_says_what_it_is_limited_to(arguments: dict[str, Any]) -> None:
    ready = plan(**{**arguments, "serve": "merged"})
    assert str(ready.prepared.within) == "to be served as merged"


def test_a_classifier_with_a_head_is_not_for_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Infeasible, match=r"no trained head.* merged"):
        plan(**small_search(tmp_path, serve="vllm"))
