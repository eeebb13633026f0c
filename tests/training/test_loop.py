from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.training import Bag, FakeHybrid, encoded_split, encoded_task, tiny_bert
from torch import Tensor, nn

from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks.encode import EncodedTask
from autopeft.training.batches import batch_stream
from autopeft.training.errors import NonFiniteLoss
from autopeft.training.forward import Forward
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan
from autopeft.training.scoring import evaluate

CPU = torch.device("cpu")
PLAN = TrainingPlan(steps=6, batch_size=16, device="cpu")


@pytest.fixture
def data() -> EncodedTask:
    return encoded_task()


def test_it_learns(data: EncodedTask) -> None:
    model = Bag()
    fake = FakeHybrid(model, training={"learning_rate": 0.05})
    result = train(fake, data, replace(PLAN, steps=200))
    assert result.final_loss < 0.5 * result.losses[0]
    assert evaluate(model, data.train, "accuracy") > 0.9


@pytest.mark.parametrize("dropout", [False, True])
def test_the_same_seed_gives_the_same_losses_bitwise(data: EncodedTask, dropout: bool) -> None:
    plan = replace(PLAN, seed=7, dropout=dropout)
    torch.manual_seed(1)
    first = train(FakeHybrid(Bag()), data, plan).losses
    torch.manual_seed(2)
    assert train(FakeHybrid(Bag()), data, plan).losses == first
    assert train(FakeHybrid(Bag()), data, replace(plan, seed=8)).losses != first


def test_a_stochastic_hybrid_repeats_bitwise(data: EncodedTask) -> None:
    recipe = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2, "dropout": 0.5}}]}]})
    losses = []
    for _ in range(2):
        with attach(tiny_bert(), recipe, seed=3) as hybrid:
            losses.append(train(hybrid, data, replace(PLAN, steps=4)).losses)
    assert losses[0] == losses[1]


def test_dropout_of_the_backbone_is_off_unless_the_recipe_or_the_plan_asks(data: EncodedTask) -> None:
    plain = train(FakeHybrid(Bag()), data, PLAN).losses
    off = Bag()
    off.drop = nn.Dropout(0.0)
    assert train(FakeHybrid(off), data, PLAN).losses == plain
    by_recipe = train(FakeHybrid(Bag(), training={"dropout": True}), data, PLAN).losses
    by_plan = train(FakeHybrid(Bag()), data, replace(PLAN, dropout=True)).losses
    assert by_recipe == by_plan != plain
    assert (
        train(FakeHybrid(Bag(), training={"dropout": True}), data, replace(PLAN, dropout=False)).losses
        == plain
    )


def test_global_state_is_as_before(data: EncodedTask) -> None:
    model = Bag()
    model.drop.eval()
    before = {name: (m.training, getattr(m, "p", None)) for name, m in model.named_modules()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    train(FakeHybrid(model), data, replace(PLAN, dropout=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)  # type: ignore[index]
    assert {name: (m.training, getattr(m, "p", None)) for name, m in model.named_modules()} == before
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True]


class _Failing(nn.Linear):
    def __init__(self, at: int, value: float) -> None:
        super().__init__(6, 6)
        self.at, self.value = at, value

    def before_step(self, step: int, total: int) -> None:
        if step == self.at:
            with torch.no_grad():
                self.weight.fill_(self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_rate(data: EncodedTask, value: float) -> None:
    model = Bag()
    model.adapter = _Failing(2, value)
    model.train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    fake = FakeHybrid(model, training={"learning_rate": 0.02, "schedule": "constant", "warmup": 0})
    with pytest.raises(NonFiniteLoss, match=r"at step 3 \(highest learning rate 0.02\)") as error:
        train(fake, data, PLAN)
    assert (error.value.step, error.value.learning_rate) == (3, 0.02)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


class _Order(nn.Linear):
    """Writes down what happens, and checks what holds at each event."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.log: list[str] = []
        self.before = torch.empty(0)

    def before_step(self, step: int, total: int) -> None:
        assert self.weight.grad is None
        self.before = self.weight.detach().clone()
        self.log.append(f"before {step}/{total}")

    def after_backward(self, step: int, total: int) -> None:
        assert self.weight.grad is not None
        self.weight.grad[0] = 0
        self.log.append("backward")

    def after_step(self, step: int, total: int) -> None:
        assert self.weight.grad is not None
        assert float(self.weight.grad[0].abs().sum()) == 0
        assert torch.equal(self.weight[0], self.before[0]), "a masked row must not move"
        assert not torch.equal(self.weight, self.before)
        self.log.append("after")

    def finish(self) -> None:
        self.log.append("finish")


def test_events_come_in_order_and_masks_hold(data: EncodedTask) -> None:
    model = Bag()
    model.adapter = order = _Order()
    steps: list[int] = []
    fake = FakeHybrid(model)
    train(fake, data, replace(PLAN, steps=2), on_step=lambda step, loss: steps.append(step))
    assert order.log == ["before 0/2", "backward", "after", "before 1/2", "backward", "after", "finish"]
    assert steps == [1, 2]


def test_clipping_counts_only_what_the_mask_leaves(data: EncodedTask) -> None:
    """With everything but one entry masked, that entry alone must reach the limit."""
    norms: list[float] = []

    class OneEntry(nn.Linear):
        def after_backward(self, step: int, total: int) -> None:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            assert self.weight.grad is not None
            self.weight.grad[0, 0] = 100.0

        def after_step(self, step: int, total: int) -> None:
            assert self.weight.grad is not None
            norms.append(float(self.weight.grad[0, 0]))

    model = Bag()
    model.adapter = OneEntry(6, 6)
    train(FakeHybrid(model, training={"max_grad_norm": 0.5}), data, replace(PLAN, steps=1))
    assert norms == pytest.approx([0.5], rel=1e-4)


def test_should_stop_ends_it_after_the_step(data: EncodedTask) -> None:
    model = Bag()
    model.adapter = order = _Order()
    result = train(FakeHybrid(model), data, PLAN, should_stop=lambda: len(order.log) >= 6)
    assert (result.steps, result.stopped) == (2, "asked")
    assert order.log[-1] == "finish"


def test_scores_while_training_change_nothing(data: EncodedTask) -> None:
    recipe = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2, "dropout": 0.5}}]}]})
    results, told = [], []
    for every in (None, 2):
        with attach(tiny_bert(), recipe, seed=3) as hybrid:
            plan = replace(PLAN, eval_every=every)
            results.append(train(hybrid, data, plan, on_score=lambda step, score: told.append((step, score))))
    assert results[0].losses == results[1].losses
    assert [step for step, _ in results[1].scores] == [2, 4, 6]
    assert told == results[1].scores


def test_patience_returns_to_the_best_state(data: EncodedTask) -> None:
    """The head is driven astray, so the first score stays the best."""
    model = Bag()

    class Spoiler(nn.Linear):
        def __init__(self, *size: int) -> None:
            super().__init__(*size)
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))

        def after_step(self, step: int, total: int) -> None:
            cast(Tensor, self.steps).fill_(step + 1)
            if step == 1:
                with torch.no_grad():
                    model.head.weight.neg_()

    model.adapter = Spoiler(6, 6)
    fake = FakeHybrid(model, training={"learning_rate": 0.05})
    train(fake, data, replace(PLAN, steps=100))
    plan = replace(PLAN, steps=50, eval_every=1, patience=3)
    fake.recipe = Recipe.from_dict({"name": "f", "training": {"learning_rate": 1e-6}})
    result = train(fake, data, plan)
    scores = [score for _, score in result.scores]
    assert result.stopped == "patience"
    assert result.steps == scores.index(max(scores)) + 1 + 3
    assert evaluate(model, data.select, "accuracy") == max(scores) > scores[-1]
    assert int(cast(Tensor, model.adapter.steps)) == scores.index(max(scores)) + 1


def test_every_epoch_holds_every_row_once_in_a_new_order() -> None:
    split = encoded_split(50, seed=0)
    rows = [tuple(split.ids[a:b].tolist()) for a, b in zip(split.offsets, split.offsets[1:], strict=False)]
    stream = batch_stream(split, replace(PLAN, batch_size=16, seed=4), CPU, Forward(Bag()))
    epochs: list[list[tuple[int, ...]]] = []
    for _ in range(2):
        seen: list[tuple[int, ...]] = []
        while len(seen) < len(rows):
            batch = next(stream)
            lengths = batch["attention_mask"].sum(1).tolist()
            seen += [tuple(ids[:n].tolist()) for ids, n in zip(batch["input_ids"], lengths, strict=True)]
        epochs.append(seen)
    assert sorted(epochs[0]) == sorted(rows) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_no_rows_no_training(data: EncodedTask) -> None:
    empty = EncodedTask(data.task, {**data.splits, "train": replace(data.train, labels=None)}, 16)
    with pytest.raises(UsageError, match="labelled rows"):
        train(FakeHybrid(Bag()), empty, PLAN)


def test_regression_learns() -> None:
    data = encoded_task(kind="regression")
    model = Bag(classes=1)
    result = train(FakeHybrid(model, training={"learning_rate": 0.05}), data, replace(PLAN, steps=200))
    assert result.final_loss < 0.5 * result.losses[0]
    assert evaluate(model, data.train, "pearson") > 0.8


def test_class_weights_move_the_decision() -> None:
    shares = []
    for weights in ([1.0, 1.0], [1.0, 50.0]):
        model = Bag()
        data = encoded_task(class_weights=weights)
        train(FakeHybrid(model, training={"learning_rate": 0.02}), data, replace(PLAN, steps=20))
        with torch.no_grad():
            batch = data.select.collate(range(len(data.select)))
            logits = model(batch["input_ids"], batch["attention_mask"])[0]
        shares.append(float((logits[:, 1] > logits[:, 0]).float().mean()))
    assert shares[1] > shares[0]


_LORA = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})


@pytest.mark.parametrize("end", ["detach", "merge"])
def test_what_is_not_attached_is_not_trained(end: str, data: EncodedTask) -> None:
    hybrid = attach(tiny_bert(), _LORA, seed=0)
    getattr(hybrid, end)()
    for ask in (lambda: train(hybrid, data, PLAN), hybrid.for_trainer, hybrid.refresh):
        with pytest.raises(UsageError, match="is detached from its model, which would be at work without it"):
            ask()
    assert not hasattr(hybrid.model, "autopeft")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in hybrid.model.modules())


def test_a_frozen_entry_keeps_its_values_and_hears_of_nothing(
    data: EncodedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself and within a gate, whose own parameters train; a training that is paused goes on likewise."""
    monkeypatch.chdir(tmp_path)
    with attach(tiny_bert(), _LORA, seed=4) as source:
        train(source, data, PLAN)
        source.save("source")
    kept = {"lora": {"rank": 2}, "from": "source", "frozen": True}
    body = {"inputs": {"source": "source"}, "layers": [{"attach": [{"gate": [kept, "ia3"]}]}]}
    with attach(tiny_bert(), Recipe.from_dict(body), seed=0) as hybrid:
        before = {name: value.clone() for name, value in hybrid.root.state_dict().items()}
        heard: list[str] = []
        for name, module in hybrid.modules.items():
            cast(Any, module).after_step = lambda *_, name=name: heard.append(name)
        whole = train(hybrid, data, PLAN)
        assert set(heard) == {"gate", "ia3"}
        changed = {
            name for name, value in hybrid.root.state_dict().items() if not torch.equal(value, before[name])
        }
    assert {name.partition(".")[0] for name in changed} == {"gate", "ia3"}
    assert whole.losses[-1] != whole.losses[0]
    with attach(tiny_bert(), Recipe.from_dict(body), seed=0) as hybrid:
        paused = train(hybrid, data, PLAN, until=3)
    with attach(tiny_bert(), Recipe.from_dict(body), seed=0) as hybrid:
        assert train(hybrid, data, PLAN, resume=paused.checkpoint).losses == whole.losses
