from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import tiny_inputs, tiny_model
from support.training import tiny_bert
from torch import nn

from autopeft.errors import RecipeError
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.optimizer import groups_of
from autopeft.recipe import Recipe

MLP = {"prefix_tuning": {"length": 2, "reparameterization": 4}}


def recipe(*items: Any, **training: Any) -> Recipe:
    return Recipe.from_dict({"name": "r", "layers": [{"attach": list(items)}], "training": training})


def groups(hybrid: Hybrid) -> dict[str, tuple[float, float]]:
    return {g["name"]: (g["lr"], g["weight_decay"]) for g in hybrid.parameter_groups()}


def ids(parameters: Any) -> list[int]:
    return [id(p) for p in parameters]


def test_the_rows_and_the_mlp_of_a_prefix_have_rates_of_their_own() -> None:
    by_part = {"prefix_tuning": {"learning_rate": 0.3}, "prefix_tuning.mlp": {"learning_rate": 0.1}}
    with attach(tiny_bert(), recipe(MLP, weight_decay=0.2, groups=by_part), seed=0) as hybrid:
        assert groups(hybrid) == {
            "prefix_tuning": (0.3, 0.2), "prefix_tuning.mlp": (0.1, 0.2), "head": (1e-3, 0.2),
        }  # fmt: skip
        first, mlp, _ = hybrid.parameter_groups()
        module: Any = hybrid.modules["prefix_tuning"]
        assert ids(first["params"]) == ids([module.encoders["encoder-attention"].embedding])
        held = ids(p for g in (first, mlp) for p in g["params"])
        assert sorted(held) == sorted(ids(module.parameters()))


def test_a_part_by_entry_a_part_by_method_and_the_rest() -> None:
    own = {"lora": {"rank": 2, "sites": ["k"]}, "as": "own"}
    by_part = {
        "lora.up": {"learning_rate": 0.1}, "own.up": {"weight_decay": 0.5}, "own": {"learning_rate": 0.7},
        "lora.down": {"learning_rate": 0.2},
    }  # fmt: skip
    with attach(tiny_bert(), recipe("lora", own, groups=by_part), seed=0) as hybrid:
        found = groups(hybrid)
    assert found == {
        "lora.up": (0.1, 0.0), "lora.down": (0.2, 0.0),
        "own.up": (0.7, 0.5), "own.down": (0.2, 0.0), "head": (1e-3, 0.0),
    }  # fmt: skip


def test_a_group_for_a_part_comes_before_what_the_module_asks_for() -> None:
    by_part = {"sora.gates": {"weight_decay": 0.3}}
    with attach(tiny_bert(), recipe("sora", groups=by_part, weight_decay=0.1), seed=0) as hybrid:
        assert groups(hybrid)["sora.gates"] == (1e-3, 0.3)
    with attach(tiny_bert(), recipe("sora", weight_decay=0.1), seed=0) as hybrid:
        assert groups(hybrid)["sora.gates"] == (1e-3, 0.0)


def test_policies_act_on_the_parts() -> None:
    training = {"groups": {"lora.up": {"learning_rate": 0.1}}, "policies": [{"lora_plus": {"ratio": 4}}]}
    with attach(tiny_bert(), recipe("lora", **training), seed=0) as hybrid:
        rates = {g["name"]: g["lr"] for g in hybrid.optimizer().param_groups}
    assert rates == pytest.approx({"lora": 1e-3, "lora.up.up": 0.4, "head": 1e-3})


def test_a_part_that_no_module_has_is_refused_at_attach_and_the_model_is_as_before() -> None:
    """Of a method that does not declare its parts they are known only here."""
    model = tiny_bert()
    keys = list(model.state_dict())
    wrong = recipe("ia3", groups={"ia3.up": {"learning_rate": 0.1}})
    message = r"training\.groups\.ia3\.up: 'ia3' is not divided into parts, so it has no 'up'; write 'ia3'"
    with pytest.raises(RecipeError, match=message):
        attach(model, wrong)
    assert list(model.state_dict()) == keys


def test_a_group_for_a_part_of_a_method_passes_over_entries_without_it() -> None:
    bare = {"prefix_tuning": {"length": 2, "reparameterization": None}, "as": "bare"}
    by_part = {"prefix_tuning.mlp": {"learning_rate": 0.1}}
    with attach(tiny_bert(), recipe(MLP, bare, groups=by_part), seed=0) as hybrid:
        found = groups(hybrid)
    assert found.keys() == {"prefix_tuning", "prefix_tuning.mlp", "bare", "head"}


def test_a_module_that_names_its_groups_alone_has_these_as_parts() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": [self.a]}, {"name": "late", "params": [self.b], "lr": 0.4}]

    whole = recipe("lora", learning_rate=0.1).training
    groups = recipe("lora", groups={"lora": {"learning_rate": 0.9}}).training.groups
    part = whole.model_copy(update={"groups": {"lora.late": groups["lora"]}})
    module = Split()
    found = [{g["name"]: g["lr"] for g in groups_of("lora", "lora", module, s)} for s in (whole, part)]
    assert found == [{"lora": 0.1, "lora.late": 0.4}, {"lora": 0.1, "lora.late": 0.9}]


APART = {"head": {"learning_rate": 0.1}, "head.hidden": {"learning_rate": 0.01, "weight_decay": 0.5}}


def test_the_hidden_layers_of_a_head_train_as_their_group_says() -> None:
    model = tiny_model("roberta")
    before = {n: p.detach().clone() for n, p in model.classifier.named_parameters()}
    with attach(model, recipe("lora", groups=APART), seed=0) as hybrid:
        assert groups(hybrid) == {"lora": (1e-3, 0.0), "head": (0.1, 0.0), "head.hidden": (0.01, 0.5)}
        _, last, hidden = hybrid.parameter_groups()
        assert ids(last["params"]) == ids(model.classifier.out_proj.parameters())
        assert ids(hidden["params"]) == ids(model.classifier.dense.parameters())
        assert sorted(ids(hybrid.head_parameters())) == sorted(ids([*last["params"], *hidden["params"]]))
        optimizer = hybrid.optimizer()
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        model(**tiny_inputs("roberta")).logits.square().sum().backward()
        optimizer.step()
        moved = {
            n: float((p.detach() - before[n]).abs().max()) for n, p in model.classifier.named_parameters()
        }
    # Adam's first step moves every weight by the rate.
    assert moved == pytest.approx(
        {"dense.weight": 0.01, "dense.bias": 0.01, "out_proj.weight": 0.1, "out_proj.bias": 0.1}, rel=1e-3
    )


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_without_a_group_of_their_own_or_hidden_layers_the_head_is_one(name: str) -> None:
    own = {"head": APART["head"]} if name == "roberta" else APART
    with attach(tiny_model(name), recipe("lora", groups=own), seed=0) as hybrid:
        assert groups(hybrid) == {"lora": (1e-3, 0.0), "head": (0.1, 0.0)}
        assert ids(hybrid.parameter_groups()[-1]["params"]) == ids(hybrid.head_parameters())
