from __future__ import annotations

from typing import Any

import pytest
import torch
from support.training import Bag, FakeHybrid, encoded_task, tiny_bert
from torch import nn
from transformers.optimization import Adafactor

from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.hybrid.policies import Policies
from autopeft.recipe import Recipe
from autopeft.training.errors import NonFiniteLoss
from autopeft.training.loop import train
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.plan import TrainingPlan


def section(**training: Any) -> Any:
    return Recipe.from_dict({"name": "r", "training": training}).training


def test_each_group_keeps_its_rate_under_the_schedule() -> None:
    groups = [
        {"name": "a", "params": [nn.Parameter(torch.ones(1))], "lr": 0.1, "weight_decay": 0.0},
        {"name": "b", "params": [nn.Parameter(torch.ones(1))], "lr": 0.004, "weight_decay": 0.1},
        {"name": "none", "params": [], "lr": 9.0, "weight_decay": 0.0},
    ]
    optimizer = PhaseOptimizer(groups, section(warmup=0.5, schedule="linear"), 4)
    seen = []
    for step in range(4):
        optimizer.schedule(step)
        seen.append([group["lr"] for group in optimizer.inner.param_groups])
    factors = [1 / 3, 2 / 3, 1.0, 0.5]
    assert seen == [pytest.approx([0.1 * f, 0.004 * f]) for f in factors]
    assert [group["weight_decay"] for group in optimizer.inner.param_groups] == [0.0, 0.1]
    assert optimizer.highest_rate == pytest.approx(0.05)
    assert optimizer.rates == pytest.approx([0.05, 0.002])
    assert len(optimizer.rates) == len(optimizer.parameters)


@pytest.mark.parametrize(("limit", "expected"), [(1.0, [0.6, 0.8]), (0.0, [3.0, 4.0]), (10.0, [3.0, 4.0])])
def test_clipping_is_over_all_groups_together(limit: float, expected: list[float]) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"name": str(i), "params": [p], "lr": 1.0} for i, p in enumerate(parameters)]
    optimizer = PhaseOptimizer(groups, section(max_grad_norm=limit), 1)
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    optimizer.clip(0)
    grads = [float(p.grad) for p in parameters if p.grad is not None]
    assert grads == pytest.approx(expected, rel=1e-4)


def test_clipping_by_group_limits_each_for_itself() -> None:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    shared = [{"name": "ab", "params": parameters[:2], "lr": 1.0, "weight_decay": 0.1}]
    groups = [*shared, {"name": "c", "params": parameters[2:], "lr": 1.0}]
    optimizer = PhaseOptimizer(groups, section(max_grad_norm=1.0, optimizer={"clip": "group"}), 1)
    for parameter, value in zip(parameters, ([3.0, 0.0], [0.0, 4.0], [0.3, 0.4]), strict=True):
        parameter.grad = torch.tensor(value)
    optimizer.clip(0)
    grads = [p.grad.tolist() for p in parameters if p.grad is not None]
    assert grads == [pytest.approx(g, rel=1e-4) for g in ([0.6, 0.0], [0.0, 0.8], [0.3, 0.4])]


def test_a_group_may_have_a_constant_rate_and_be_clipped_by_itself() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    own = {"schedule": "constant", "warmup": 0.0, "clip": "group"}
    groups = [{"name": str(i), "params": [p], "lr": 1.0} for i, p in enumerate(parameters)]
    groups[2] |= own
    optimizer = PhaseOptimizer(groups, section(max_grad_norm=1.0, warmup=0.5, schedule="linear"), 4)
    rates = []
    for step in range(4):
        optimizer.schedule(step)
        rates.append([group["lr"] for group in optimizer.inner.param_groups])
    assert rates == [pytest.approx([f, f, 1.0]) for f in (1 / 3, 2 / 3, 1.0, 0.5)]
    for parameter, value in zip(parameters, (3.0, 4.0, 7.0), strict=True):
        parameter.grad = torch.tensor([value])
    optimizer.clip(0)
    assert [float(p.grad) for p in parameters if p.grad is not None] == pytest.approx([0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, torch.optim.AdamW),
        ({"name": "adam"}, torch.optim.Adam),
        ({"name": "sgd", "momentum": 0.9}, torch.optim.SGD),
        ({"name": "adafactor"}, Adafactor),
    ],
)
def test_the_loop_takes_the_recipe_s_optimizer(options: dict[str, Any], kind: type[Any]) -> None:
    parameter = nn.Parameter(torch.ones(1))
    group = {"name": "a", "params": [parameter], "lr": 0.1, "weight_decay": 0.0}
    assert type(PhaseOptimizer([group], section(optimizer=options), 1).inner) is kind


def test_rates_and_parameters_stay_together_where_decay_divides_a_group() -> None:
    recipe = Recipe.from_dict(
        {
            "layers": [{"attach": ["mov"]}],
            "training": {"weight_decay": 0.1, "groups": {"mov": {"learning_rate": 0.5}}},
        }
    )
    with attach(tiny_bert(), recipe, seed=0) as hybrid:
        groups, modules = hybrid.parameter_groups(), hybrid.modules
        optimizer = PhaseOptimizer(groups, recipe.training, 4, modules.values())
        optimizer.schedule(0)
        rates = {id(p): r for p, r in zip(optimizer.parameters, optimizer.rates, strict=True)}
        own = {id(p) for p in modules["mov"].parameters()}
        assert len(optimizer.inner.param_groups) == len(groups) + 1
        assert rates == {id(p): 0.5 if id(p) in own else 1e-3 for p in hybrid.trainable_parameters()}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adafactor"])
def test_a_training_with_zero_gradients_leaves_ia3_at_one(name: str) -> None:
    """The head starts at zero, so that nothing behind it has a gradient but zero."""
    model = tiny_bert()
    nn.init.zeros_(model.classifier.weight)
    training = {
        "learning_rate": 0.1, "weight_decay": 0.5, "optimizer": {"name": name},
        "groups": {"head": {"learning_rate": 1e-12, "weight_decay": 0.0}},
    }  # fmt: skip
    recipe = Recipe.from_dict({"layers": [{"attach": ["ia3"]}], "training": training})
    with attach(model, recipe, seed=0) as hybrid:
        with torch.no_grad():
            for factor in hybrid.modules["ia3"].parameters():
                factor.fill_(2.0)
        model.classifier.weight.register_hook(torch.zeros_like)
        train(hybrid, encoded_task(), TrainingPlan(steps=30, device="cpu"))
        reached = torch.cat([f.detach().flatten() for f in hybrid.modules["ia3"].parameters()])
    assert bool(((reached > 1.0) & (reached < 1.6)).all())


def test_a_gradient_that_is_not_finite_is_told() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = PhaseOptimizer([{"name": "a", "params": [parameter], "lr": 0.25}], section(), 1)
    parameter.grad = torch.tensor([float("inf")])
    with pytest.raises(NonFiniteLoss, match=r"gradient's norm is (inf|nan) at step 5 \(.* 0.25\)"):
        optimizer.clip(4)


def test_lora_plus_splits_the_groups_of_a_hybrid() -> None:
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "layers": [{"attach": [{"lora": {"rank": 2}}, {"serial_adapter": {"bottleneck": 4}}]}],
            "training": {
                "learning_rate": 1e-3,
                "groups": {"serial_adapter": {"learning_rate": 5e-4}, "head": {"learning_rate": 2e-3}},
                "policies": [{"lora_plus": {"ratio": 8}}],
            },
        }
    )
    with attach(tiny_bert(), recipe, seed=0) as hybrid:
        groups = Policies(recipe.training).adjust(hybrid.parameter_groups(), hybrid.modules)
        rates = {group["name"]: group["lr"] for group in groups}
        held = [id(p) for group in groups for p in group["params"]]
        trained = {id(p) for p in hybrid.trainable_parameters()}
    assert rates["lora"] == pytest.approx(1e-3)
    assert rates["lora.up"] == pytest.approx(8e-3)
    assert rates["serial_adapter"] == pytest.approx(5e-4)
    assert rates["head"] == pytest.approx(2e-3)
    assert len(held) == len(set(held))
    assert set(held) == trained


def test_a_policy_without_anything_to_act_on_is_refused_before_training() -> None:
    recipe = Recipe.from_dict(
        {"name": "r", "layers": [{"attach": ["ia3"]}], "training": {"policies": ["lora_plus"]}}
    )
    with attach(tiny_bert(), recipe, seed=0) as hybrid:
        with pytest.raises(UsageError, match="'lora_plus' finds nothing to act on"):
            train(hybrid, encoded_task(), TrainingPlan(steps=2, device="cpu"))
        with pytest.raises(UsageError, match="'lora_plus' finds nothing to act on"):
            hybrid.optimizer()


def test_groups_by_entry_move_at_their_own_rate() -> None:
    """Adam's first step moves every entry by its group's rate."""
    model = Bag()
    before = [model.adapter.weight.detach().clone(), model.head.weight.detach().clone()]
    training = {"warmup": 0.0, "learning_rate": 0.01, "groups": {"head": {"learning_rate": 0.3}}}
    train(FakeHybrid(model, training=training), encoded_task(), TrainingPlan(steps=1, device="cpu"))
    after = [model.adapter.weight.detach(), model.head.weight.detach()]
    moved = [float((a - b).abs().max()) for a, b in zip(after, before, strict=True)]
    assert moved == pytest.approx([0.01, 0.3], rel=1e-3)
