"""What decides between fp32 and bf16."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.classifiers import classifier
from support.training import encoded_task

from autopeft.assets.precision import keep_head_exact
from autopeft.training import TrainingPlan
from autopeft.training.precision import FASTER, ROUGHER, PrecisionProbe, probe_precision


@pytest.mark.parametrize(
    ("fp32", "bf16", "error", "chosen"),
    [
        (2.0, 1.0, 0.01, "bf16"),
        (FASTER, 1.0, ROUGHER, "bf16"),
        (1.14, 1.0, 0.01, "fp32"),
        (1.0, 2.0, 0.0, "fp32"),
        (3.0, 1.0, 0.021, "fp32"),
    ],
)
def test_bf16_has_to_be_faster_and_not_too_rough(fp32: float, bf16: float, error: float, chosen: str) -> None:
    probe = PrecisionProbe(fp32, bf16, error)
    assert probe.precision == chosen
    assert probe.sentence().startswith(f"Recipes are tried in {chosen}: ")


def test_the_sentence_says_what_was_measured() -> None:
    assert "2.6 times as fast as fp32 here, and its gradients differ by 1.1 %" in (
        PrecisionProbe(2.6, 1.0, 0.011).sentence()
    )
    assert "of no duration" in PrecisionProbe(0.0, 0.0, 0.0).sentence()


def halved(model: Any) -> Any:
    rough = copy.deepcopy(model).to(torch.bfloat16)
    keep_head_exact(rough)
    return rough


def test_gradients_of_equal_backbones_are_equal_and_those_of_a_rough_one_nearly() -> None:
    model, data = classifier("bert"), encoded_task()
    plan = TrainingPlan(steps=1, batch_size=8, max_length=16, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same = probe_precision(lambda precision: model, data, plan)
    assert same is not None
    assert same.error == 0
    assert min(same.fp32, same.bf16) > 0
    models = {"fp32": model, "bf16": halved(model)}
    rough = probe_precision(models.__getitem__, data, plan)
    assert rough is not None
    assert 1e-4 < rough.error < 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())
    other = {"fp32": model, "bf16": copy.deepcopy(model)}
    for parameter in other["bf16"].base_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    apart = probe_precision(other.__getitem__, data, plan)
    assert apart is not None
    assert apart.error > 0.3
