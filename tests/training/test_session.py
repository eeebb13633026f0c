"""A phase that drives itself: its steps, and the losses and gradients that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.tiny import randomise
from support.training import Bag, FakeHybrid, encoded_task, tiny_bert
from torch import Tensor, nn

from autopeft.hybrid import attach
from autopeft.method import Session
from autopeft.recipe import Recipe
from autopeft.training.loop import train
from autopeft.training.phases import Phase
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult

PLAN = TrainingPlan(steps=6, batch_size=16, device="cpu")
Act = Callable[[Session], None]


class Driving(nn.Module):
    """Hands its only phase to `act`."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6))
        self.act = act
        self.log: list[Any] = []

    def phases(self) -> list[Phase]:
        return [Phase("drive", run=self.act)]

    def after_step(self, step: int, total: int) -> None:
        self.log.append((step, total))


class DrivenBag(Bag):
    def __init__(self, driving: Driving) -> None:
        super().__init__()
        self.driving = driving

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        mask = attention_mask[..., None]
        mean = (self.embedding[input_ids] * mask).sum(1) / mask.sum(1) + self.driving.weight
        return (self.head(torch.tanh(self.adapter(mean))),)


def run(act: Act, **options: Any) -> tuple[TrainResult, Driving]:
    driving = Driving(act)
    model = DrivenBag(driving)
    fake = FakeHybrid(model, {"driving": driving, "adapter": model.adapter})
    return train(fake, encoded_task(), PLAN, **options), driving


def test_its_steps_are_those_of_any_phase() -> None:
    def all_of_them(session: Session) -> None:
        assert session.steps == 6
        while session.step():
            pass
        assert not session.step()

    found, driving = run(all_of_them)
    assert driving.log == [(i, 6) for i in range(6)]

    def plain(driving: Driving) -> list[Phase]:
        return [Phase("drive")]

    before, Driving.phases = Driving.phases, plain  # type: ignore[method-assign]
    try:
        assert run(lambda session: None)[0].losses == found.losses
    finally:
        Driving.phases = before  # type: ignore[method-assign]


def test_it_may_take_fewer_and_is_told_to_end() -> None:
    found, _ = run(lambda session: [session.step() for _ in range(2)] and None)
    assert found.steps == 2
    told = iter([False, True])
    found, _ = run(
        lambda session: [session.step() for _ in range(5)] and None, should_stop=lambda: next(told)
    )
    assert (found.steps, found.stopped) == (2, "asked")


def test_it_knows_how_far_it_is() -> None:
    def look(session: Session) -> None:
        while not session.over:
            seen.append(session.taken)
            session.step()
        seen.append(session.taken)

    seen: list[int] = []
    run(look)
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    seen.clear()
    told = iter([False, True])
    run(look, should_stop=lambda: next(told))
    assert seen == [0, 1, 2], "the training was to end"


def test_the_optimizer_forgets_what_it_is_told_to() -> None:
    """The step that follows is that parameter's first: Adam's is then the rate times the gradient's sign."""

    def forget(session: Session, forgotten: tuple[int, ...]) -> None:
        for step in range(5):
            if step in forgotten:
                session.forget([driving.weight])
            before = driving.weight.detach().clone()
            session.step()
            moved.append((driving.weight.detach() - before).abs())

    changes = []
    for forgotten in ((), (3,)):
        moved: list[Tensor] = []
        driving = Driving(partial(forget, forgotten=forgotten))
        model = DrivenBag(driving)
        training = {"learning_rate": 0.01, "warmup": 0.0, "schedule": "constant"}
        fake = FakeHybrid(model, {"driving": driving, "adapter": model.adapter}, training)
        train(fake, encoded_task(), PLAN)
        changes.append(moved)
    assert all(torch.equal(a, b) for a, b in zip(changes[0][:3], changes[1][:3], strict=True))
    assert torch.allclose(changes[1][3], torch.full((6,), 0.01), rtol=1e-3)
    assert not torch.allclose(changes[0][3], torch.full((6,), 0.01), rtol=1e-2)


def test_losses_draw_where_they_are_asked_to() -> None:
    made = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2, "dropout": 0.5}}]}]})
    found: list[bool] = []

    def look(session: Session) -> None:
        (batch,) = session.batches(48)
        with torch.no_grad():
            found.append(torch.equal(session.losses(batch), session.losses(batch)))
            drawn = [session.losses(batch, training=True) for _ in range(2)]
            found.append(torch.equal(*drawn))
        found.append(drawn[0].requires_grad)

    with attach(tiny_bert(), made, seed=0) as hybrid:
        randomise(hybrid.root)
        module = next(iter(hybrid.modules.values()))
        module.phases = lambda: [Phase("p", run=look)]  # type: ignore[assignment]
        train(hybrid, encoded_task(), PLAN)
    assert found == [True, False, False]


def test_its_batches_hold_each_row_once() -> None:
    def count(session: Session) -> None:
        sizes.append([len(batch["labels"]) for batch in session.batches()])
        sizes.append([len(batch["labels"]) for batch in session.batches(1)])

    sizes: list[list[int]] = []
    run(count)
    assert sizes == [[16, 16, 16], [1] * 48]


def test_losses_are_those_of_each_row() -> None:
    def compare(session: Session) -> None:
        (batch,) = session.batches(48)
        losses = session.losses(batch)
        assert losses.shape == (48,)
        assert not losses.requires_grad
        singles = torch.cat([session.losses(single) for single in session.batches(1)])
        assert torch.allclose(losses.sort().values, singles.sort().values, atol=1e-6)
        done.append(True)

    done: list[bool] = []
    run(compare)
    assert done


def test_gradients_of_the_backbone_are_those_with_everything_attached() -> None:
    """A weight method's Δ is added to W₀, so that ∂loss/∂W₀ is the gradient at W₀ + Δ."""
    made = Recipe.from_dict(
        {"name": "r", "model": ["bitfit"], "layers": [{"attach": [{"lora": {"rank": 2, "dropout": 0.3}}]}]}
    )
    found: dict[str, Tensor] = {}

    def measure(session: Session) -> None:
        names = [n for n in session.backbone if n.endswith(("query.weight", "word_embeddings.weight"))]
        assert len(names) >= 2
        (batch,) = session.batches(48)
        wanted = [session.backbone[name] for name in names]
        flags = [p.requires_grad for p in session.backbone.values()]
        found.update(zip(names, session.gradients(batch, wanted), strict=True))
        assert [p.requires_grad for p in session.backbone.values()] == flags
        assert all(p.grad is None for p in session.backbone.values())
        assert torch.equal(session.losses(batch), session.losses(batch)), "in eval mode nothing draws"
        again = session.gradients(batch, wanted, training=True)
        assert not torch.equal(again[0], found[names[0]]), "dropout draws"
        found["batch"] = batch["input_ids"]
        found["mask"], found["labels"] = batch["attention_mask"], batch["labels"]

    data = encoded_task()
    with attach(tiny_bert(), made, seed=0) as hybrid:
        randomise(hybrid.root)
        module = next(iter(hybrid.modules.values()))
        module.phases = lambda: [Phase("p", run=measure)]  # type: ignore[assignment]
        train(hybrid, data, PLAN)
        labels, ids, mask = found.pop("labels"), found.pop("batch"), found.pop("mask")
        hybrid.model.eval()
        parameters = hybrid.backbone_parameters()
        for name in found:
            parameters[name].requires_grad_(True)
        logits = hybrid.model(input_ids=ids, attention_mask=mask).logits
        nn.functional.cross_entropy(logits, labels).backward()
        for name, gradient in found.items():
            wanted = parameters[name].grad
            assert wanted is not None
            assert torch.allclose(gradient, wanted, atol=1e-6), name
            assert bool(gradient.any())


@pytest.mark.parametrize("micro", [None, 5])
def test_gradients_are_of_whole_batches(micro: int | None) -> None:
    def measure(session: Session) -> None:
        (batch,) = session.batches(48)
        parameters = [p for n, p in driving.named_parameters()]
        found.append(session.gradients(batch, parameters)[0])

    found: list[Tensor] = []
    driving = Driving(measure)
    model = DrivenBag(driving)
    fake = FakeHybrid(model, {"driving": driving, "adapter": model.adapter})
    plan = TrainingPlan(steps=1, batch_size=16, device="cpu", micro_batch=micro)
    data = encoded_task()
    train(fake, data, plan)
    whole = data.train.collate(range(48))
    loss = nn.functional.cross_entropy(model(whole["input_ids"], whole["attention_mask"])[0], whole["labels"])
    (wanted,) = torch.autograd.grad(loss, [driving.weight])
    assert torch.allclose(found[0], wanted, atol=1e-6)


def test_a_mask_that_moves_is_followed() -> None:
    """The next step trains the entries that are chosen now, in tensors that nothing altered before."""
    recipe = Recipe.from_dict({"name": "r", "model": [{"fish_mask": {"keep": 8, "samples": 4}}]})
    with attach(tiny_bert(), recipe, seed=0) as hybrid:
        (module,) = hybrid.modules.values()
        entries: Any = module.entries
        names = [t.name for t in entries.tensors]
        tensor = next(n for n in names if n.endswith("layer.0.output.dense.bias"))

        def move(session: Session) -> None:
            assert session.step()
            before.extend(entries.selected())
            start = entries.offsets[tensor][0]
            entries.select(torch.arange(start, start + 8))
            entries.values.detach().zero_()
            assert session.step()

        before: list[str] = []
        module.phases = lambda: [Phase("p", run=move)]  # type: ignore[assignment]
        train(hybrid, encoded_task(), PLAN)
        assert tensor not in before
        assert entries.selected() == [tensor]
        assert bool((entries.values != 0).all())
