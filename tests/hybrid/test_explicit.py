"""What data have settled, written out as a recipe of plain methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import LogitsObjective, randomise, tiny_inputs, tiny_model
from support.training import encoded_task, tiny_bert

from autopeft.errors import UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, explicit_recipe
from autopeft.recipe import Recipe
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

SENSITIVE = {"sensitivity_tuning": {"keep": "9%", "rank": 2, "batches": 2, "batch_size": 3}}


def prepared(name: str, body: dict[str, Any]) -> Hybrid:
    model = tiny_model(name)
    hybrid = attach(model, Recipe.from_dict({"name": "s", **body}), seed=0)
    rows = [{**tiny_inputs(name, batch=3, seed=i), "labels": torch.tensor([0, 1, 0])} for i in range(3)]
    hybrid.prepare(lambda wanted: rows, LogitsObjective(model))
    return hybrid


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_modules_and_whole_biases_have_a_plain_method_in_their_place(name: str) -> None:
    with prepared(name, {"model": [SENSITIVE]}) as hybrid:
        found = explicit_recipe(hybrid)
        module: Any = hybrid.modules["sensitivity_tuning"]
        assert "sensitivity_tuning" not in found.recipe.methods
        graph = build_graph(found.recipe, hybrid.spec)
        loras = [e for e in graph.entries.values() if e.method.name == "lora"]
        at = [s.key for e in loras for s in e.sites]
        assert sorted(at) == sorted(key for key, child in module.at.items() if child.there)
        assert {(e.method.config.rank, e.method.config.scale) for e in loras} == {(2, 1.0)}
        for entry in loras:
            dropout = 0.0 if {s.name for s in entry.sites} <= {"o", "cross_o"} else 0.1
            assert entry.method.config.dropout == dropout
        whole = {
            t.name
            for t in hybrid.spec.tensors
            if t.role in ("bias", "norm_bias") and t.layer is not None and _whole(module, t)
        }
        said = [
            str(target.tensor)
            for e in graph.entries.values()
            if e.method.name == "bitfit"
            for target in e.method.build(e.sites, hybrid.spec).weight_targets()
        ]
        assert sorted(said) == sorted(whole)
        single = sum(
            hi - lo
            for t in module.entries.tensors
            if (lo := module.entries.spans()[t.name][0]) < (hi := module.entries.spans()[t.name][1])
            and hi - lo < t.size
        )
        assert any(f"{single:,} single entries" in note for note in found.left)


def _whole(module: Any, tensor: Any) -> bool:
    lo, hi = module.entries.spans().get(tensor.name, (0, 0))
    return bool(hi - lo == tensor.size)


def test_ranks_that_training_has_found_become_those_of_lora() -> None:
    """At the same scale, so that with the factors that were trained they would be the same function."""
    sora = {"sora": {"rank": 4, "sites": ["q", "v", "down"], "threshold": 0.5}}
    recipe = Recipe.from_dict(
        {
            "name": "s",
            "layers": [{"at": [0], "attach": [sora, "ia3"]}, {"at": [1], "attach": [{"gate": ["lora"]}]}],
        }
    )
    with attach(tiny_bert(), recipe, seed=0) as hybrid:
        train(hybrid, encoded_task(), TrainingPlan(steps=4, batch_size=16, device="cpu"))
        module: Any = hybrid.modules["sora"]
        ranks, scale = module.ranks(), module.scale
        assert len(set(ranks.values())) > 1, "the test needs ranks that differ"
        found = explicit_recipe(hybrid)
        graph = build_graph(found.recipe, hybrid.spec)
    assert found.left == ()
    assert [e.name for e in recipe.entries() if e.method != "sora"] == ["ia3", "lora"]
    plain = [e for e in graph.entries.values() if e.method.name == "lora" and e.sites[0].layer == 0]
    assert {s.path: e.method.config.rank for e in plain for s in e.sites} == {
        k: r for k, r in ranks.items() if r
    }
    assert [e.method.config.scale for e in plain] == pytest.approx([scale] * len(plain))
    assert "ia3" in found.recipe.methods
    assert found.recipe.name == "s-explicit"


@pytest.mark.parametrize("deployed", [False, True])
def test_ranks_of_a_shared_budget(deployed: bool) -> None:
    item = {"adalora": {"rank": 2, "interval": 1, "dropout": 0.2}}
    recipe = Recipe.from_dict({"name": "s", "layers": [{"attach": [item]}]})
    with attach(tiny_bert(), recipe, seed=0) as hybrid:
        train(hybrid, encoded_task(), TrainingPlan(steps=6, batch_size=16, device="cpu"))
        module: Any = hybrid.modules["adalora"]
        kept = dict(zip(module.at, module.kept.sum(1).tolist(), strict=True))
        if deployed:
            module.deploy()
        found = explicit_recipe(hybrid)
        graph = build_graph(found.recipe, hybrid.spec)
        configs = {s.key: e.method.config for e in graph.entries.values() for s in e.sites}
        assert sum(kept.values()) == 2 * len(kept)
        assert {key: c.rank for key, c in configs.items()} == {k: r for k, r in kept.items() if r}
        assert {c.dropout for c in configs.values()} == {0.2}
        assert [c.scale for c in configs.values()] == pytest.approx([module.scale] * len(configs))


def test_settings_go_over_to_what_takes_the_place() -> None:
    groups = {
        "sensitivity_tuning": {"learning_rate": 0.004},
        "sensitivity_tuning.up": {"learning_rate": 0.01},
        "head": {"learning_rate": 0.02},
    }
    with prepared("bert", {"model": [SENSITIVE], "training": {"groups": groups}}) as hybrid:
        found = explicit_recipe(hybrid)
    kept = {name: group.learning_rate for name, group in found.recipe.training.groups.items()}
    assert kept == {"head": 0.02, **dict.fromkeys(set(found.recipe.methods), 0.004)}
    assert "the settings of sensitivity_tuning.up" in found.left


def test_settings_do_not_go_over_to_entries_that_stay() -> None:
    layers = [{"attach": [{"adalora": {"rank": 4, "sites": ["q", "v"]}}, {"lora": {"sites": ["down"]}}]}]
    groups = {"adalora": {"learning_rate": 0.02}}
    with prepared("bert", {"layers": layers, "training": {"groups": groups}}) as hybrid:
        found = explicit_recipe(hybrid)
    assert not found.recipe.training.groups
    assert "the settings of adalora for lora, of which there are others" in found.left


def test_layers_that_are_alike_share_a_block() -> None:
    autolora = {"autolora": {"rank": 4, "sites": ["q", "v"]}}
    recipe = Recipe.from_dict({"name": "s", "layers": [{"attach": [autolora]}]})
    with attach(tiny_model("bert"), recipe, seed=0) as hybrid:
        found = explicit_recipe(hybrid).recipe
    (block,) = found.to_dict()["layers"]
    assert block == {"at": [0, 1, 2], "attach": [{"lora": {"sites": ["q", "v"], "rank": 4, "alpha": 8.0}}]}


def test_refusals() -> None:
    with (
        attach(tiny_model("bert"), Recipe.from_dict({"name": "s", "model": [SENSITIVE]})) as hybrid,
        pytest.raises(UsageError, match="not calibrated"),
    ):
        explicit_recipe(hybrid)
    plain = Recipe.from_dict({"name": "p", "layers": [{"attach": ["lora"]}]})
    with attach(tiny_model("bert"), plain) as hybrid, pytest.raises(UsageError, match="No method of 'p'"):
        explicit_recipe(hybrid)
    gated = Recipe.from_dict({"name": "g", "layers": [{"attach": [{"gate": ["sora", "ia3"]}]}]})
    with (
        attach(tiny_model("bert"), gated) as hybrid,
        pytest.raises(UsageError, match="stands in a composition"),
    ):
        explicit_recipe(hybrid)
    adapters = {"sensitivity_tuning": {**SENSITIVE["sensitivity_tuning"], "module": "adapter"}}
    with prepared("bert", {"model": [adapters]}) as hybrid:
        randomise(hybrid.root)
        with pytest.raises(UsageError, match="module: lora"):
            explicit_recipe(hybrid)
