"""Child-tuning F: unbiased masks of gradients, drawn anew in each step, behind the clipping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.toy import configured
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training.loop import train
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=3, batch_size=16, device="cpu")


def group(name: str, *shape: int) -> dict[str, Any]:
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape)
    return {"name": name, "params": [parameter]}


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "r",
            "layers": [{"attach": [{"lora": {"rank": 4}}, "serial_adapter"]}],
            "training": {"policies": [{"child_tuning_f": config}], "learning_rate": 0.01},
        }
    )


def test_the_mean_over_draws_is_the_gradient_and_a_share_p_is_kept() -> None:
    torch.manual_seed(0)
    policy, one = configured("child_tuning_f", p=0.3), group("lora", 40, 50)
    (parameter,) = one["params"]
    gradient, total, kept = parameter.grad.clone(), torch.zeros(40, 50), []
    for step in range(400):
        parameter.grad = gradient.clone()
        policy.before_update([one], step, 400)
        left = parameter.grad != 0
        assert torch.allclose(parameter.grad[left], gradient[left] / 0.3)
        kept.append(left)
        total += parameter.grad
    share = torch.stack(kept).float().mean()
    assert share == pytest.approx(0.3, abs=0.003)
    assert not torch.equal(kept[0], kept[1])
    # The standard error of the mean of one entry is |g|·√((1−p)/p/400).
    error = (total / 400 - gradient) / gradient.abs()
    assert float(error.mean().abs()) < 0.01
    assert float(error.std()) == pytest.approx((0.7 / 0.3 / 400) ** 0.5, rel=0.1)


def test_it_acts_on_what_is_named_alone() -> None:
    policy = configured("child_tuning_f", on=("lora",))
    groups = [group("lora", 30, 30), group("lora.up", 30, 30), group("lora_2", 30, 30), group("head", 30, 30)]
    policy.before_update(groups, 0, 1)
    zeros = [int((g["params"][0].grad == 0).sum()) for g in groups]
    assert [n > 0 for n in zeros] == [True, True, False, False]


@pytest.mark.parametrize("on", [["dora"], ["lora", "haed"]])
def test_names_without_a_group_are_refused(on: list[str]) -> None:
    with (
        attach(tiny_bert(), recipe(on=on), seed=0) as hybrid,
        pytest.raises(
            UsageError, match=f"to act `on` '{on[-1]}', and nothing .* There are: lora, serial_adapter, head"
        ),
    ):
        train(hybrid, encoded_task(), PLAN)


def test_the_loop_masks_behind_the_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm is that of the whole gradient; what is left of it is divided by p."""
    seen: list[list[Tensor]] = []
    clip = PhaseOptimizer.clip

    def clipped(optimizer: PhaseOptimizer, taken: int) -> None:
        clip(optimizer, taken)
        seen.append([p.grad.clone() for p in optimizer.parameters if p.grad is not None])

    def stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        seen.append([p.grad.clone() for p in parameters if p.grad is not None])

    monkeypatch.setattr(PhaseOptimizer, "clip", clipped)
    hook = register_optimizer_step_pre_hook(stepped)
    try:
        with attach(tiny_bert(), recipe(p=0.5), seed=0) as hybrid:
            train(hybrid, encoded_task(), PLAN)
    finally:
        hook.remove()
    assert len(seen) == 2 * PLAN.steps
    for whole, masked in zip(seen[::2], seen[1::2], strict=True):
        for before, after in zip(whole, masked, strict=True):
            left = after != 0
            assert torch.allclose(after[left], before[left] / 0.5)
        assert 0.3 < sum(int((m != 0).sum()) for m in masked) / sum(int((w != 0).sum()) for w in whole) < 0.7


def test_it_has_no_parameters_and_trains_with_the_same_draws_again() -> None:
    losses = []
    for _ in range(2):
        with attach(tiny_bert(), recipe(), seed=0) as hybrid:
            losses.append(train(hybrid, encoded_task(), PLAN).losses)
            assert set(hybrid.modules) == {"lora", "serial_adapter"}
    assert losses[0] == losses[1]
