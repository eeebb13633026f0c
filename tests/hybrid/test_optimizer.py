"""The recipe's optimizers against torch's and transformers' own, and decay against its formula."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support.tiny import tiny_model
from support.training import tiny_bert
from torch import Tensor, nn
from transformers.optimization import Adafactor

from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.hybrid.optimizer import build_optimizer
from autopeft.method import DecayTarget
from autopeft.recipe import Recipe

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
CASES: dict[str, tuple[dict[str, Any], Build]] = {
    "default": ({}, lambda g: torch.optim.AdamW(g)),
    "adamw": (
        {"betas": [0.8, 0.98], "epsilon": 1e-3},
        lambda g: torch.optim.AdamW(g, betas=(0.8, 0.98), eps=1e-3),
    ),
    "adam": (
        {"name": "adam", "betas": [0.8, 0.98], "epsilon": 1e-3},
        lambda g: torch.optim.Adam(g, betas=(0.8, 0.98), eps=1e-3),
    ),
    "sgd": ({"name": "sgd"}, lambda g: torch.optim.SGD(g)),
    "momentum": (
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True),
    ),
    "adafactor": (
        {"name": "adafactor", "decay_rate": -0.6, "update_threshold": 0.5},
        lambda g: Adafactor(
            g, relative_step=False, scale_parameter=False, decay_rate=-0.6, clip_threshold=0.5
        ),
    ),
    "adafactor-scaled": (
        {"name": "adafactor", "scale_parameter": True},
        lambda g: Adafactor(g, relative_step=False),
    ),
}


def section(optimizer: Mapping[str, Any]) -> Any:
    return Recipe.from_dict({"training": {"optimizer": dict(optimizer)}}).training.optimizer


class Pair(nn.Module):
    """A plain parameter and one that decays as it is told, both (3, 2)."""

    def __init__(self, target: DecayTarget = 0.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.plain = nn.Parameter(torch.randn(3, 2, generator=draw))
        self.factor = nn.Parameter(torch.randn(3, 2, generator=draw))
        self.target = target

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        return {self.factor: self.target}

    def groups(self, decay: float) -> list[dict[str, Any]]:
        return [{"name": "g", "params": [self.plain, self.factor], "lr": 0.1, "weight_decay": decay}]

    def drive(self, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
        draw = torch.Generator().manual_seed(5)
        for _ in range(steps):
            for parameter in (self.plain, self.factor):
                parameter.grad = torch.randn(3, 2, generator=draw)
            optimizer.step()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_each_optimizer_is_the_library_s(case: str, decay: float) -> None:
    options, theirs = CASES[case]
    ours, reference = Pair(), Pair()
    ours.drive(build_optimizer(ours.groups(decay), section(options), [ours]))
    reference.drive(theirs(reference.groups(decay)))
    assert torch.equal(ours.plain, reference.plain)
    assert torch.equal(ours.factor, reference.factor)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", [1.0, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), None])
def test_without_weight_decay_targets_change_no_bit_and_divide_no_group(case: str, target: Any) -> None:
    ours, reference = Pair(target), Pair()
    optimizer = build_optimizer(ours.groups(0.0), section(CASES[case][0]), [ours])
    ours.drive(optimizer)
    reference.drive(CASES[case][1](reference.groups(0.0)))
    assert len(optimizer.param_groups) == 1
    assert torch.equal(ours.plain, reference.plain)
    assert torch.equal(ours.factor, reference.factor)


@pytest.mark.parametrize("target", [1.0, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])])
@pytest.mark.parametrize("case", ["default", "adam", "sgd", "adafactor"])
def test_decay_towards_a_target_is_decoupled_under_every_optimizer(case: str, target: Any) -> None:
    """p ← p − lr·λ·(p − target) before the optimizer's own step without decay, which sees g alone."""
    ours, reference = Pair(target), Pair()
    ours.drive(build_optimizer(ours.groups(0.3), section(CASES[case][0]), [ours]))
    plain = CASES[case][1]([{"params": [reference.plain], "lr": 0.1, "weight_decay": 0.3}])
    bare = CASES[case][1]([{"params": [reference.factor], "lr": 0.1, "weight_decay": 0.0}])
    draw = torch.Generator().manual_seed(5)
    for _ in range(4):
        for parameter in (reference.plain, reference.factor):
            parameter.grad = torch.randn(3, 2, generator=draw)
        with torch.no_grad():
            reference.factor.copy_(reference.factor - 0.1 * 0.3 * (reference.factor - target))
        plain.step()
        bare.step()
    assert torch.equal(ours.plain, reference.plain)
    torch.testing.assert_close(ours.factor, reference.factor, atol=1e-6, rtol=1e-6)


def test_decay_towards_a_target_moves_with_the_origin_as_adamw_s_does() -> None:
    """Shifted by its target, a parameter takes AdamW's own way."""
    ours, reference = Pair(1.0), Pair()
    with torch.no_grad():
        reference.factor.sub_(1.0)
    ours.drive(build_optimizer(ours.groups(0.3), section({}), [ours]))
    reference.drive(torch.optim.AdamW(reference.groups(0.3)))
    torch.testing.assert_close(ours.factor - 1.0, reference.factor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_decay_takes_the_bare_steps(case: str) -> None:
    ours, reference = Pair(None), Pair()
    optimizer = build_optimizer(ours.groups(0.3), section(CASES[case][0]), [ours])
    ours.drive(optimizer)
    reference.drive(CASES[case][1](reference.groups(0.0)))
    assert torch.equal(ours.factor, reference.factor)
    assert not torch.equal(ours.plain, reference.plain)
    assert [(g["name"], g["weight_decay"]) for g in optimizer.param_groups] == [("g", 0.3), ("g", 0.0)]


def test_a_parameter_without_a_gradient_is_passed_over_as_torch_does() -> None:
    pair = Pair(1.0)
    before = [pair.plain.detach().clone(), pair.factor.detach().clone()]
    build_optimizer(pair.groups(0.3), section({}), [pair]).step()
    assert torch.equal(pair.plain, before[0])
    assert torch.equal(pair.factor, before[1])


def test_decay_follows_the_rate_of_the_step() -> None:
    pair = Pair(1.0)
    optimizer = build_optimizer(pair.groups(0.5), section({"name": "sgd"}), [pair])
    pair.plain.grad, pair.factor.grad = torch.zeros(3, 2), torch.zeros(3, 2)
    start = pair.factor.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.2
    optimizer.step()
    torch.testing.assert_close(pair.factor.detach(), start - 0.2 * 0.5 * (start - 1))


def test_the_state_of_an_optimizer_with_targets_is_saved_and_loaded() -> None:
    ours, again = Pair(1.0), Pair(1.0)
    first = build_optimizer(ours.groups(0.3), section({}), [ours])
    ours.drive(first, steps=2)
    with torch.no_grad():
        again.plain.copy_(ours.plain)
        again.factor.copy_(ours.factor)
    second = build_optimizer(again.groups(0.3), section({}), [again])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    ours.drive(first)
    again.drive(second)
    assert torch.equal(ours.plain, again.plain)
    assert torch.equal(ours.factor, again.factor)


def recipe(method: Any, **training: Any) -> Recipe:
    return Recipe.from_dict({"name": "r", "layers": [{"attach": [method]}], "training": training})


def _zero_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor"])
def test_ia3_without_a_gradient_decays_towards_one(name: str) -> None:
    training = {"learning_rate": 0.5, "weight_decay": 0.1, "optimizer": {"name": name}}
    with attach(tiny_bert(), recipe("ia3", **training), seed=0) as hybrid:
        factors = list(hybrid.modules["ia3"].parameters())
        optimizer = hybrid.optimizer()
        _zero_gradients(hybrid.trainable_parameters())
        optimizer.step()
        assert all(torch.equal(f, torch.ones_like(f)) for f in factors)
        with torch.no_grad():
            for factor in factors:
                factor.fill_(3.0)
        optimizer.step()
        for factor in factors:
            torch.testing.assert_close(factor.detach(), torch.full_like(factor, 2.9))


def test_dora_decays_towards_the_norms_of_the_pretrained_rows() -> None:
    training = {"learning_rate": 1.0, "weight_decay": 0.5}
    model = tiny_bert()
    with attach(model, recipe({"dora": {"sites": ["q"]}}, **training), seed=0) as hybrid:
        pairs: Any = hybrid.modules["dora"]
        norms: list[Tensor] = [pair.magnitude.detach().clone() for pair in pairs.children_by_site()]
        weights = [layer.attention.self.query.weight for layer in model.bert.encoder.layer]
        for norm, weight in zip(norms, weights, strict=True):
            torch.testing.assert_close(norm, weight.detach().norm(dim=1))
        downs = [pair.A.detach().clone() for pair in pairs.children_by_site()]
        with torch.no_grad():
            for pair in pairs.children_by_site():
                pair.magnitude.mul_(2)
        optimizer = hybrid.optimizer()
        _zero_gradients(hybrid.trainable_parameters())
        optimizer.step()
        for pair, norm, down in zip(pairs.children_by_site(), norms, downs, strict=True):
            torch.testing.assert_close(pair.magnitude.detach(), 1.5 * norm)
            torch.testing.assert_close(pair.A.detach(), 0.5 * down)


def test_dora_s_targets_are_neither_saved_nor_counted(tmp_path: Any) -> None:
    with attach(tiny_bert(), recipe("dora"), seed=0) as hybrid:
        assert not any("pretrained" in key for key in hybrid.root.state_dict())
        assert hybrid.counts().trained == sum(p.numel() for p in hybrid.root.parameters())


def test_a_hybrid_s_optimizer_is_the_recipe_s_and_options_come_first() -> None:
    training = {"optimizer": {"betas": [0.9, 0.98], "epsilon": 1e-6}, "weight_decay": 0.01}
    with attach(tiny_bert(), recipe("lora", **training), seed=0) as hybrid:
        found = {(g["betas"], g["eps"]) for g in hybrid.optimizer().param_groups}
        assert found == {((0.9, 0.98), 1e-6)}
        assert {g["eps"] for g in hybrid.optimizer(eps=1e-3).param_groups} == {1e-3}
    with attach(tiny_bert(), recipe("lora", optimizer={"name": "sgd"}), seed=0) as hybrid:
        assert isinstance(hybrid.optimizer(), torch.optim.SGD)


def test_nothing_to_train_is_refused() -> None:
    hybrid = attach(tiny_model("llama"), Recipe.from_dict({"name": "empty"}))
    for ask in (hybrid.optimizer, hybrid.for_trainer):
        with pytest.raises(
            UsageError, match=r"nothing to train: .* Add an entry .* load a model with a head"
        ):
            ask()
