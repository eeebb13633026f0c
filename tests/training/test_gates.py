"""Gates on blocks while they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.training import encoded_task, tiny_bert

from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.training import Checkpoint, TrainingPlan, run_trial
from autopeft.training.gates import Gates, Gating
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
