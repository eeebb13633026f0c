"""Gradient checkpointing by the plan, and backbones in 8 bits: the same losses, with every shortcut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantized import unpacked
from support.training import encoded_task, tiny_bert
from transformers import BertForSequenceClassification

from autopeft.assets import load_model, resolve_model
from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, train
from autopeft.training.contexts import checkpointing

RECIPES = {
    "everywhere": Recipe.from_dict(
        {"name": "r", "layers": [{"attach": ["lora", {"prefix_tuning": {"length": 2}}, "serial_adapter"]}]}
    ),
    "above": Recipe.from_dict({"name": "r", "layers": [{"at": "last 1", "attach": ["lora"]}]}),
}


def losses(model: Any, recipe: Recipe, **options: Any) -> list[float]:
    plan = TrainingPlan(steps=6, batch_size=16, device="cpu", **options)
    with attach(model, recipe, seed=0) as hybrid:
        return train(hybrid, encoded_task(), plan).losses


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("options", [{}, {"shortcuts": False}, {"dropout": True}, {"micro_batch": 4}])
def test_saving_memory_changes_no_loss(name: str, options: dict[str, Any]) -> None:
    plain = losses(tiny_bert(), RECIPES[name], **options)
    assert losses(tiny_bert(), RECIPES[name], memory_saving=True, **options) == pytest.approx(plain, rel=1e-5)


def test_layers_are_computed_again_in_the_backward_and_the_model_is_left_as_it_was() -> None:
    model, calls = tiny_bert(), list[int]()
    model.bert.encoder.layer[1].attention.register_forward_hook(lambda *given: calls.append(1))
    losses(model, RECIPES["everywhere"], shortcuts=False)
    once = len(calls)
    losses(model, RECIPES["everywhere"], shortcuts=False, memory_saving=True)
    assert len(calls) - once == 2 * once
    assert not model.is_gradient_checkpointing


def test_what_checkpoints_already_stays_so() -> None:
    model = tiny_bert()
    model.gradient_checkpointing_enable()
    with checkpointing(model, True):
        assert model.is_gradient_checkpointing
    assert model.is_gradient_checkpointing


def test_a_family_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(UsageError, match="no gradient checkpointing for BertForSequenceClassification"):
        losses(tiny_bert(), RECIPES["above"], memory_saving=True)


@pytest.mark.parametrize("name", RECIPES)
def test_on_eight_bits_losses_are_those_of_the_weights_that_it_computes_with(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    tiny_bert().save_pretrained(tmp_path / "bert")
    packed = load_model(resolve_model(str(tmp_path / "bert"), quantize="int8"))
    plain = unpacked(packed)
    for options in ({"shortcuts": False}, {}, {"memory_saving": True}):
        ours, exact = (losses(model, RECIPES[name], **options) for model in (packed, plain))
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
