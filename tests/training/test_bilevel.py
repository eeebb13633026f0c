from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.steps import NO_STEP
from support.training import Bag, FakeHybrid, encoded_task, tiny_bert
from torch import Tensor, nn

from autopeft.hybrid import attach
from autopeft.method import OuterStep
from autopeft.recipe import Recipe
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.training.contexts import learning
from autopeft.training.errors import NonFiniteLoss
from autopeft.training.loop import train
from autopeft.training.phases import Phase
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult

PLAN = TrainingPlan(steps=4, batch_size=8, device="cpu")
Act = Callable[["Choosing", OuterStep], None]


class Choosing(nn.Module):
    """A vector for the optimizer, `choice` for the upper level, and one that no loss depends on."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((6,), 0.5))
        self.choice = nn.Parameter(torch.ones(6))
        self.idle = nn.Parameter(torch.ones(2))
        self.act = act
        self.log: list[str] = []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight]}]

    def phases(self) -> list[Phase]:
        return [Phase("search", held_out=0.3, outer=self.outer)]

    def outer(self, step: OuterStep) -> None:
        self.log.append("outer")
        self.act(self, step)

    def loss_terms(self, step: Any) -> Tensor:
        return (self.weight * self.choice).square().sum()

    def before_step(self, step: int, total: int) -> None:
        self.log.append("before")

    def after_backward(self, step: int, total: int) -> None:
        assert self.choice.grad is None, "the lower level's loss must not gather a gradient for the upper's"
        self.log.append("backward")


class ChoosingBag(Bag):
    """Adds weight·choice to the mean, and remembers the batches that came by."""

    def __init__(self, choosing: Choosing, limit: int = 99) -> None:
        super().__init__()
        self.choosing, self.limit = choosing, limit
        self.batches: list[tuple[Tensor, Tensor]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        self.batches.append((input_ids, attention_mask))
        if len(input_ids) > self.limit:
            raise torch.OutOfMemoryError("not enough")
        mask = attention_mask[..., None]
        mean = (self.embedding[input_ids] * mask).sum(1) / mask.sum(1)
        mean = mean + self.choosing.weight * self.choosing.choice
        return (self.head(torch.tanh(self.adapter(self.drop(mean)))),)


def run(
    act: Act, plan: TrainingPlan = PLAN, limit: int = 99, **training: Any
) -> tuple[TrainResult, ChoosingBag]:
    model = ChoosingBag(Choosing(act), limit)
    fake = FakeHybrid(model, {"choosing": model.choosing, "adapter": model.adapter}, training)
    return train(fake, encoded_task(), plan), model


def rows(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[int, ...]]:
    """The tokens of each row, which tell the rows of the toy task apart."""
    return [tuple(i[m.bool()].tolist()) for ids, mask in batches for i, m in zip(ids, mask, strict=True)]


def test_the_levels_see_rows_of_their_own_which_together_are_all() -> None:
    upper: list[tuple[int, ...]] = []
    lower: list[tuple[int, ...]] = []

    def act(module: Choosing, step: OuterStep) -> None:
        begun = len(model[0].batches)
        step.lower([module.choice])
        middle = len(model[0].batches)
        step.upper([module.choice])
        step.upper([module.choice])
        first, second = model[0].batches[middle:]
        assert torch.equal(first[0], second[0]), "one batch of held-out rows for each step"
        lower.extend(rows(model[0].batches[begun:middle]))
        upper.extend(rows([first]))

    choosing = Choosing(act)
    model = [ChoosingBag(choosing)]
    fake = FakeHybrid(model[0], {"choosing": choosing})
    data = encoded_task()
    every = rows([(b["input_ids"], b["attention_mask"]) for b in data.train.batches(48, shuffle=False)])
    assert len(set(every)) == 48
    train(fake, data, replace(PLAN, steps=25))
    assert set(lower).isdisjoint(upper)
    assert set(lower) | set(upper) == set(every)
    assert len(set(upper)) == round(0.3 * 48)
    # Five batches are an epoch of the lower level, two one of the upper.
    assert sorted(lower[:34]) == sorted(set(lower))
    assert sorted(upper[:14]) == sorted(set(upper))
    # Each step trains on the batch that its `lower` looked at.
    trained = rows(model[0].batches[3::4])
    assert trained == lower


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_gradients_are_those_of_the_losses(micro_batch: int | None) -> None:
    checked = []

    def act(module: Choosing, step: OuterStep) -> None:
        wanted = [module.choice, module.weight, module.idle]
        begun = len(model.batches)
        module.choice.grad = torch.ones(6)  # left from before, it has no part in what follows
        found = {"lower": step.lower(wanted)}
        middle = len(model.batches)
        found["upper"] = step.upper(wanted)
        seen = {"lower": model.batches[begun:middle], "upper": model.batches[middle:]}
        assert all(p.grad is None for p in model.parameters())
        for level, got in found.items():
            labels = [int(7 in row) for row in rows(seen[level])]
            with torch.enable_grad(), learning(list(model.parameters()), wanted):
                logits = torch.cat([model(ids, mask)[0] for ids, mask in seen[level]])
                loss = CrossEntropy(None).mean(logits, {"labels": torch.tensor(labels)})
                if level == "lower":
                    loss = loss + module.loss_terms(NO_STEP)
                expected = torch.autograd.grad(loss, wanted, allow_unused=True)
            torch.testing.assert_close(got[0], expected[0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(got[1], expected[1], atol=1e-6, rtol=1e-5)
            assert torch.equal(got[2], torch.zeros(2))
            checked.append(float(got[0].abs().sum()))

    choosing = Choosing(act)
    model = ChoosingBag(choosing)
    plan = replace(PLAN, steps=1, micro_batch=micro_batch, dropout=False)
    train(FakeHybrid(model, {"choosing": choosing, "adapter": model.adapter}), encoded_task(), plan)
    assert len(checked) == 2
    assert min(checked) > 0


def test_it_comes_after_before_step_and_leaves_the_flags() -> None:
    flags: list[bool] = []

    def act(module: Choosing, step: OuterStep) -> None:
        step.lower([module.choice])
        flags.extend((module.weight.requires_grad, module.choice.requires_grad, module.idle.requires_grad))

    _, model = run(act, replace(PLAN, steps=2))
    assert model.choosing.log == ["before", "outer", "backward"] * 2
    assert flags == [True, False, False] * 2
    assert model.choosing.choice.requires_grad
    assert torch.equal(model.choosing.choice, torch.ones(6)), "the phase's optimizer has no part in it"


def test_the_lower_level_is_what_the_optimizer_trains_at_its_present_rates() -> None:
    seen: list[list[float]] = []

    def act(module: Choosing, step: OuterStep) -> None:
        names = {id(p): n for n, p in model.named_parameters()}
        assert [names[id(p)] for p in step.parameters] == [
            "choosing.weight", "adapter.weight", "adapter.bias", "head.weight", "head.bias",
        ]  # fmt: skip
        seen.append(list(step.rates))

    choosing = Choosing(act)
    model = ChoosingBag(choosing)
    modules = {"choosing": choosing, "adapter": model.adapter}
    groups = {"head": {"learning_rate": 0.2}}
    training = {"learning_rate": 0.1, "schedule": "linear", "warmup": 0.0, "groups": groups}
    train(FakeHybrid(model, modules, training), encoded_task(), replace(PLAN, steps=2))
    assert seen[0] == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.2])
    assert seen[1] == pytest.approx([r / 2 for r in seen[0]])


def test_all_passes_of_a_level_draw_the_same_numbers() -> None:
    draws: list[list[Tensor]] = []

    def act(module: Choosing, step: OuterStep) -> None:
        found = [step.lower([module.weight]), step.upper([module.weight])]
        after = torch.get_rng_state()
        found += [step.lower([module.weight]), step.upper([module.weight]), step.lower([module.weight])]
        lower, upper, again, upper_again, third = (f[0] for f in found)
        assert torch.equal(lower, again)
        assert torch.equal(lower, third)
        assert torch.equal(upper, upper_again)
        assert torch.equal(torch.get_rng_state(), after), "the step itself goes on with new numbers"
        draws.append([lower, upper])

    plan = replace(PLAN, dropout=True, steps=2)
    run(act, plan)
    plain = run(lambda module, step: None, plan)[0].losses
    assert run(act, plan)[0].losses != plain
    assert not torch.equal(draws[0][0], draws[1][0])


def test_the_levels_draw_different_numbers() -> None:
    states: list[Tensor] = []

    class Watched(ChoosingBag):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
            states.append(torch.get_rng_state())
            return super().forward(input_ids, attention_mask)

    def act(module: Choosing, step: OuterStep) -> None:
        for level in (step.upper, step.lower, step.upper, step.lower):
            level([module.weight])

    choosing = Choosing(act)
    fake = FakeHybrid(Watched(choosing), {"choosing": choosing})
    train(fake, encoded_task(), replace(PLAN, dropout=True, steps=1))
    upper, lower, upper_again, lower_again, step = states
    assert torch.equal(upper, upper_again)
    assert torch.equal(lower, lower_again)
    assert len({tuple(s.tolist()) for s in (upper, lower, step)}) == 3


def test_full_memory_makes_smaller_micro_batches_here_too() -> None:
    found: list[Tensor] = []

    def act(module: Choosing, step: OuterStep) -> None:
        found.append(step.upper([module.choice])[0])

    whole, _ = run(act)
    halved, model = run(act, limit=2)
    first, second, third = (len(ids) for ids, _ in model.batches[:3])
    assert (second, third) == (first // 2, first // 2 // 2)
    assert halved.micro_rows == third <= 2
    assert halved.losses == pytest.approx(whole.losses, rel=1e-5)
    for one, two in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_not_finite_is_told() -> None:
    """Also where only `outer` meets it, at values that it puts back."""

    def act(module: Choosing, step: OuterStep) -> None:
        kept = module.weight.detach().clone()
        with torch.no_grad():
            module.weight.fill_(float("nan" if len(module.log) > 3 else 1))
        try:
            step.upper([module.choice])
        finally:
            with torch.no_grad():
                module.weight.copy_(kept)

    with pytest.raises(NonFiniteLoss, match="loss is nan at step 2") as error:
        run(act)
    assert error.value.step == 2


def one_phase(phase: Phase, **options: Any) -> TrainResult:
    """A LoRA on a real model, in a single phase of its own."""
    lora = Recipe.from_dict({"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    with attach(tiny_bert(), lora, seed=0) as hybrid:
        module: Any = hybrid.modules["lora"]
        module.phases = lambda: [phase]
        return train(hybrid, encoded_task(), PLAN, **options)


def test_a_training_with_an_upper_level_pauses_without_a_checkpoint() -> None:
    result = one_phase(Phase("search", held_out=0.3, outer=lambda step: None), until=2)
    assert (result.stopped, result.checkpoint) == ("paused", None)


def test_one_that_only_holds_rows_out_goes_on_from_its_checkpoint() -> None:
    phase = Phase("search", held_out=0.3)
    whole, first = one_phase(phase), one_phase(phase, until=2)
    assert first.checkpoint is not None
    assert one_phase(phase, resume=first.checkpoint).losses == whole.losses
    assert whole.losses != one_phase(Phase("search")).losses


def test_gradients_do_not_reach_what_is_not_wanted() -> None:
    def act(module: Choosing, step: OuterStep) -> None:
        (gradient,) = step.lower([module.choice])
        with torch.no_grad():
            module.choice -= 0.1 * gradient

    _, model = run(act)
    assert not torch.equal(model.choosing.choice, torch.ones(6))
    assert torch.equal(model.choosing.idle, torch.ones(2))
    assert all(p.grad is None for p in model.parameters())


def test_a_step_ahead_is_the_one_that_the_optimizer_takes_and_leaves_no_trace() -> None:
    kept: list[list[Tensor]] = []

    def act(choosing: Choosing, step: OuterStep) -> None:
        gradient = step.lower(step.parameters)
        before = [p.detach().clone() for p in step.parameters]
        kept.append([*before, *step.ahead(gradient)])
        assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
        assert all(p.grad is None for p in step.parameters)

    aside, _ = run(act, max_grad_norm=0.0)
    plain, _ = run(lambda choosing, step: None, max_grad_norm=0.0)
    assert aside.losses == plain.losses
    half = len(kept[0]) // 2
    for this, following in pairwise(kept):
        assert all(torch.allclose(a, b) for a, b in zip(this[half:], following[:half], strict=True))
