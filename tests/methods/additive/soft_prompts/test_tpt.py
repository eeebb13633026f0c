from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toy import counted, toy_specs
from support.training import encoded_task, tiny_bert
from torch import Tensor
from torch.nn import functional as F
from transformers import BertForSequenceClassification

from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=6, batch_size=8, seed=3, device="cpu", shortcuts=False)
LENGTH, NARROW = 3, 8
OWN = {"length": LENGTH, "source_width": NARROW, "hidden": 5}


def narrow() -> BertForSequenceClassification:
    """A model of width `NARROW`."""
    config = tiny_bert().config
    config.hidden_size = NARROW
    return BertForSequenceClassification(config).eval()


@pytest.fixture(autouse=True)
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The prompt of a narrower model, saved in `source`."""
    monkeypatch.chdir(tmp_path)
    model = narrow()
    recipe = Recipe.from_dict({"model": [{"prompt_tuning": {"length": LENGTH}}]})
    with attach(model, recipe, seed=1) as hybrid:
        hybrid.save("source")
    return hybrid.root.get_parameter("prompt_tuning.table").detach()


def attached(**options: Any) -> tuple[Hybrid, Any]:
    training = {"learning_rate": 0.05, "warmup": 0.0}
    item = {"tpt": {**OWN, **options}, "from": "source"}
    recipe = Recipe.from_dict({"inputs": {"source": "source"}, "model": [item], "training": training})
    hybrid = attach(tiny_bert(), recipe, seed=5)
    return hybrid, hybrid.modules["tpt"]


@given(toy_specs, st.integers(1, 4), st.booleans())
def test_count_is_what_it_holds(spec: BackboneSpec, length: int, norm: bool) -> None:
    options = {"length": length, "source_width": 7, "hidden": 6, "norm": norm}
    deployed, trained, held, held_trained = counted("tpt", spec, **options)
    width = spec.stacks[0].hidden
    assert deployed == held == length * width
    expected = length * 7 * 6 + 6 + 6 * length * width + length * width + (2 * width if norm else 0)
    assert trained == held_trained == expected


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("norm", [True, False])
def test_the_prompt_is_the_projected_source(source: Tensor, activation: str, norm: bool) -> None:
    _, module = attached(activation=activation, norm=norm)
    p = dict(module.projector.named_parameters())
    hidden = source.reshape(-1) @ p["down.weight"].T + p["down.bias"]
    hidden = torch.tanh(hidden) if activation == "tanh" else F.leaky_relu(hidden, 0.01)
    rows = (hidden @ p["up.weight"].T + p["up.bias"]).reshape(LENGTH, -1)
    if norm:
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    found = module.prompt(None, None, None)
    assert found.shape == (1, LENGTH, tiny_bert().config.hidden_size)
    torch.testing.assert_close(found[0], rows, atol=1e-5, rtol=1e-5)


def test_the_gain_of_the_norm_decays_towards_one() -> None:
    training = {"learning_rate": 0.1, "weight_decay": 0.5}
    item = {"tpt": OWN, "from": "source"}
    recipe = Recipe.from_dict({"inputs": {"source": "source"}, "model": [item], "training": training})
    hybrid = attach(tiny_bert(), recipe, seed=5)
    module: Any = hybrid.modules["tpt"]
    with torch.no_grad():
        module.projector.norm.weight.fill_(2.0)
        module.projector.norm.bias.fill_(2.0)
    optimizer = hybrid.optimizer()
    for parameter in hybrid.trainable_parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(20):
        optimizer.step()
    left = 0.95**20
    torch.testing.assert_close(module.projector.norm.weight, torch.full((16,), 1 + left))
    torch.testing.assert_close(module.projector.norm.bias, torch.full((16,), 2 * left))
    assert attached(norm=False)[1].decays() == {}
    module.deploy()
    assert module.decays() == {}


def test_only_the_projector_is_trained_and_then_only_its_prompt(source: Tensor) -> None:
    hybrid, module = attached()
    assert {n.partition(".")[0] for n, p in module.named_parameters() if p.requires_grad} == {"projector"}
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    kept: list[Any] = []
    deploy = module.deploy

    def settled() -> None:
        kept.append({n: p.detach().clone() for n, p in module.named_parameters()})
        deploy()
        kept.append(module.table.detach().clone())

    module.deploy = settled
    result = train(hybrid, encoded_task(), PLAN)
    assert all(not torch.equal(before[n], kept[0][n]) for n in before)
    assert torch.equal(module.source, source)
    assert torch.equal(result.outputs["project"], kept[1])
    assert [n for n, _ in module.named_parameters()] == ["table"]
    assert not torch.equal(module.table, kept[1])


def test_the_projector_may_be_trained_alone(tmp_path: Path) -> None:
    hybrid, module = attached(projection=1)
    train(hybrid, encoded_task(), PLAN)
    assert module.table is None
    expected = module.prompt(None, None, None)[0].detach()
    hybrid.save(tmp_path / "projected")
    again: Any = load(tiny_bert(), tmp_path / "projected").modules["tpt"]
    assert torch.equal(again.table, expected)
    start = {"prompt_tuning": {"length": LENGTH}, "from": "projected"}
    recipe = Recipe.from_dict({"inputs": {"projected": "projected"}, "model": [start]})
    assert torch.equal(attach(tiny_bert(), recipe).root.get_parameter("prompt_tuning.table"), expected)


def test_within_one_model_the_source_is_taken_as_it_is(source: Tensor) -> None:
    model = narrow()
    item = {"prompt_tuning": {"length": LENGTH}, "from": "source"}
    recipe = Recipe.from_dict({"inputs": {"source": "source"}, "model": [item]})
    assert torch.equal(attach(model, recipe).root.get_parameter("prompt_tuning.table"), source)


def test_another_width_than_the_recipe_says_is_refused() -> None:
    with pytest.raises(MethodError, match=rf"\({LENGTH}, 9\).*\({LENGTH}, {NARROW}\)"):
        attached(source_width=9)


def test_a_projector_beyond_all_others_is_refused() -> None:
    with pytest.raises(MethodError, match="smaller `length` or `hidden`"):
        attached(length=4096, source_width=65_536, hidden=16_384)


def test_without_a_source_there_is_nothing_to_train() -> None:
    item = {"tpt": OWN, "from": "source"}
    recipe = Recipe.from_dict({"inputs": {"source": "source"}, "model": [item]})
    hybrid = attach(tiny_bert(), recipe, runs=None)
    with pytest.raises(MethodError, match="'from:'"):
        train(hybrid, encoded_task(), PLAN)
