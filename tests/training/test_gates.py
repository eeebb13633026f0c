"""Gates on blocks while they train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.training import encoded_task, tiny_bert

from autopeft.hybrid import Hybrid, attach
from autopeft.nn.budgeted import binary_concrete, budgeted_sigmoid
from autopeft.recipe import Recipe
from autopeft.training import Checkpoint, TrainingPlan, run_trial
from autopeft.training.gates import BilevelGates, Gates, Gating
from autopeft.training.shared_weights import SharedWeights, linear_in_of, trained_names

PLAN = TrainingPlan(steps=20, batch_size=16, micro_batch=8, seed=2, device="cpu")


def recipe(lora: int = 4, adapter: int = 4, **more: Any) -> Recipe:
    attached = [
        {"lora": {"rank": lora, "sites": ["q", "v"]}, "as": "low"},
        {"serial_adapter": {"bottleneck": adapter, "variant": "pfeiffer", "bias": False}, "as": "adapter"},
        *([] if more.get("without") else ["ia3"]),
    ]
    training = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}
    return Recipe.from_dict({"name": "r", "layers": [{"attach": attached}], "training": training})


def gating(budget: float = 300.0, first: int = 4, last: int = 12) -> Gating:
    group_of = {"low": 0, "adapter": 1, "ia3": 2}
    return Gating(group_of, (512, 512, 160), budget, first, last, new=20)


def trained_to(step: int, gates: Gates | None) -> tuple[Checkpoint, list[str], torch.Tensor]:
    """A training that paused at a step: its checkpoint, what it trained, and its logits with the gates."""
    names: list[str] = []
    found: list[torch.Tensor] = []
    data = encoded_task()
    batch = data.select.collate(list(range(8)))

    def keep(hybrid: Hybrid, scores: Any) -> None:
        names.extend(trained_names(hybrid))
        if gates is not None:
            gates.adjust([], hybrid.modules)
            gates.before_step([], 0, 1)
        with torch.no_grad():
            found.append(hybrid.model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits)

    outcome = run_trial(
        tiny_bert(), recipe(), data, PLAN, until=step, policies=[] if gates is None else [gates], keep=keep
    )
    assert isinstance(outcome.train.checkpoint, Checkpoint)
    return outcome.train.checkpoint, names, found[0]


def test_probabilities_keep_to_the_budget_and_move_where_they_are_learnt_alone() -> None:
    gates = Gates(recipe(), gating())
    trained_to(16, gates)
    del gates.history[16:]  # of the step after
    assert len(gates.history) == 16
    sizes = torch.tensor([512.0, 512.0, 160.0])
    for p in gates.history:
        assert float((torch.tensor(p) * sizes).sum()) == pytest.approx(300, rel=1e-6)
    assert all(p == gates.history[0] for p in gates.history[:5])
    assert gates.history[0] == pytest.approx([300 / 1184] * 3)
    assert gates.history[5] != gates.history[4]
    assert all(p == gates.history[12] for p in gates.history[12:])


def test_where_rows_are_no_news_probabilities_are_learnt_from_others() -> None:
    assert Gating.over(200, 16, gating()).held_out == 0
    few = Gating.over(100, 16, gating())
    assert (few.held_out, few.new) == (0.2, 5)
    assert [step for step in range(20) if few.learns(step)] == [4, 5, 7, 9, 11]
    gates = Gates(recipe(), few)
    seen: list[tuple[int, torch.Tensor]] = []
    outer = gates.outer

    def told(step: Any) -> None:
        outer(step)
        if gates._slopes is not None:
            seen.append((gates._step, gates._slopes))

    gates.outer = told  # type: ignore[method-assign]
    trained_to(16, gates)
    assert [step for step, _ in seen] == [5, 7, 9, 11]
    assert all(float(slopes.abs().max()) > 0 for _, slopes in seen)
    moved = [i for i in range(15) if gates.history[i] != gates.history[i + 1]]
    assert moved == [4, 5, 7, 9, 11]


def test_the_gradient_of_a_gate_is_that_of_the_loss() -> None:
    """Beside the difference of losses with gates a little apart; weights get the gradient of what they give
    behind their gate."""
    data, model = encoded_task(), tiny_bert()
    batch = data.train.collate(list(range(16)))
    with attach(model, recipe(), seed=0) as hybrid:
        with torch.no_grad():
            for parameter in hybrid.root.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

        def loss_at(logits: torch.Tensor, backward: bool = False) -> tuple[float, Gates]:
            gates = Gates(recipe(), gating(first=0))
            gates.adjust([], hybrid.modules)
            with torch.no_grad():
                gates.logits.copy_(logits)
            gates.before_step([], 0, 1)
            loss = torch.nn.functional.cross_entropy(
                model(**{k: v for k, v in batch.items() if k != "labels"}).logits.double(), batch["labels"]
            )
            if backward:
                loss.backward()
            gates.after_backward([], 0, 1)
            return float(loss.detach()), gates

        at, step = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), 0.02
        before = [p.detach().clone() for p in hybrid.root.parameters()]
        _, gates = loss_at(at, backward=True)
        assert all(torch.equal(a, b) for a, b in zip(before, hybrid.root.parameters(), strict=True))
        assert gates.logits.grad is not None
        given = {name: p.grad.clone() for name, p in hybrid.root.named_parameters() if p.grad is not None}
        for i in range(3):
            moved = torch.zeros(3, dtype=torch.float64)
            moved[i] = step
            slope = (loss_at(at + moved)[0] - loss_at(at - moved)[0]) / (2 * step)
            assert float(gates.logits.grad[i]) == pytest.approx(slope, rel=0.05, abs=2e-5)

        name = next(name for name in given if name.endswith("up.weight"))
        factor, gradient = hybrid.root.get_parameter(name), given[name]
        place = tuple(torch.nonzero(gradient.abs() == gradient.abs().max())[0].tolist())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                factor[place] += sign * 0.05
            values.append(loss_at(at)[0])
            with torch.no_grad():
                factor[place] -= sign * 0.05
        assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 0.1, rel=0.05), name


def test_a_cut_hybrid_answers_as_the_gated_one_where_nothing_is_cut() -> None:
    gates = Gates(recipe(), gating())
    checkpoint, names, expected = trained_to(16, gates)
    p = gates.probabilities().tolist()
    data, model = encoded_task(), tiny_bert()
    batch = data.select.collate(list(range(8)))
    with attach(model, recipe(), seed=9) as hybrid:
        same = {name: name for name in hybrid.modules}
        folded = SharedWeights(checkpoint, names).cut(
            hybrid, same, dict(zip(("low", "adapter", "ia3"), p, strict=True))
        )
        folded.fill(hybrid)
        with torch.no_grad():
            logits = model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_gated_says_so() -> None:
    mixed = {"name": "m", "layers": [{"attach": [{"prefix_tuning": {"length": 2}}, "ia3"]}]}
    found = linear_in_of(Recipe.from_dict(mixed))
    assert dict(found["ia3"]) == {"factors": 1.0}
    assert not found["prefix_tuning"]


class _TwoLosses:
    """A bilevel step with the losses ½‖T₁·w − 1‖² and ½‖T₂·w − 2‖², and gradient descent."""

    def __init__(self, weights: list[torch.nn.Parameter], targets: list[torch.Tensor]) -> None:
        self.parameters, self.targets, self.rates = weights, targets, [0.1] * len(weights)

    def loss(self, weights: list[torch.Tensor], level: int) -> torch.Tensor:
        flat = torch.cat([w.flatten() for w in weights])
        return 0.5 * (self.targets[level - 1] @ flat - level).square().sum()

    def lower(self, wanted: Any) -> list[torch.Tensor]:
        with torch.enable_grad():
            return list(torch.autograd.grad(self.loss(self.parameters, 1), wanted))  # type: ignore[arg-type]

    def upper(self, wanted: Any) -> list[torch.Tensor]:
        with torch.enable_grad():
            return list(torch.autograd.grad(self.loss(self.parameters, 2), wanted))  # type: ignore[arg-type]

    def ahead(self, gradients: Any) -> list[torch.Tensor]:
        return [w.detach() - 0.1 * g for w, g in zip(self.parameters, gradients, strict=True)]


def test_logits_of_two_levels_have_the_gradient_of_the_loss_after_a_step_of_the_weights() -> None:
    """Beside the derivative through the step itself, by autograd; AdamW then moves them by their rate."""
    with attach(tiny_bert(), recipe(), seed=0) as hybrid:
        hybrid.root.double()
        gates = BilevelGates(recipe(), gating(first=0), seed=5)
        gates.adjust([], hybrid.modules)
        weights = list(hybrid.root.parameters())
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for w in weights:
                w.add_(0.3 * torch.randn(w.shape, generator=draw))
        count = sum(w.numel() for w in weights)
        targets = [torch.randn(40, count, generator=draw, dtype=torch.float64) / 40 for _ in range(2)]
        step, start = _TwoLosses(weights, targets), [w.detach().clone() for w in weights]
        seen: list[torch.Tensor] = []
        gates.logits.register_hook(lambda gradient: seen.append(gradient.clone()))
        gates.before_step([], 0, 10)
        gates.outer(step)

        factors = {id(f.parameter): f for f in gates._factors}
        alpha = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        p = budgeted_sigmoid(alpha, torch.tensor([512.0, 512.0, 160.0]).double(), 300.0, jacobian="reference")
        u = torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(5 * 1_000_003))
        z = binary_concrete(p, u)

        def gated(values: list[torch.Tensor]) -> list[torch.Tensor]:
            found = []
            for parameter, value in zip(weights, values, strict=True):
                f = factors.get(id(parameter))
                found.append(value if f is None else f.neutral + z[f.group] * (value - f.neutral))
            return found

        leaves = [w.clone().requires_grad_() for w in start]
        slopes = torch.autograd.grad(step.loss(gated(leaves), 1), leaves, create_graph=True)
        aside = [w - 0.1 * g for w, g in zip(leaves, slopes, strict=True)]
        # The derivative through z of the weights' own step alone is what the finite difference stands for.
        (expected,) = torch.autograd.grad(step.loss(gated(aside), 2), alpha)
        torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(gates.logits.detach(), -0.1 * expected.sign(), rtol=1e-3, atol=1e-6)
        source = torch.Generator().manual_seed(5 * 1_000_003)
        other = [torch.rand(3, dtype=torch.float64, generator=source) for _ in range(2)][1]
        assert gates._z == pytest.approx(binary_concrete(gates.probabilities().detach(), other).tolist())
        gates.after_backward([], 0, 10)
        assert all(torch.equal(a, b) for a, b in zip(start, weights, strict=True))


def test_gates_of_two_levels_are_drawn_for_each_step_and_score_by_their_probabilities() -> None:
    few = Gating({"low": 0, "adapter": 1, "ia3": 2}, (512, 512, 160), 300.0, 0, 20, 0, held_out=0.5)
    found = []
    for seed in (3, 3, 4):
        gates = BilevelGates(recipe(), few, seed=seed)
        drawn: list[list[float]] = []
        before = gates.after_backward
        gates.after_backward = lambda *a, g=gates, d=drawn, b=before: (d.append(list(g._z)), b(*a))  # type: ignore[misc]
        plan = replace(PLAN, eval_every=10)
        run_trial(tiny_bert(), recipe(), encoded_task(), plan, policies=[gates])
        assert len({tuple(z) for z in drawn}) == 20
        assert gates._z == gates.history[-1], "what was scored at the end"
        sizes = torch.tensor([512.0, 512.0, 160.0])
        assert all(
            float((torch.tensor(p) * sizes).sum()) == pytest.approx(300, rel=1e-6) for p in gates.history
        )
        found.append(drawn)
    assert found[0] == found[1] != found[2]
