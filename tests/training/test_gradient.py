from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.training import Bag, FakeHybrid, encoded_task
from torch import Tensor, nn

from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.tasks.tokens import BESIDE
from autopeft.training.errors import OutOfMemory
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

CPU = torch.device("cpu")
COLUMN = f"{BESIDE}weights"


class _Penalty(nn.Module):
    """Adds the squares of its weights to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

    def loss_terms(self, step: Any) -> Tensor:
        return self.weight.square().sum()


def gradients(micro_rows: int, weights: list[float] | None = None) -> tuple[float, list[Tensor]]:
    model, penalty = Bag().eval(), _Penalty()
    batch = next(encoded_task().train.batches(10, shuffle=True, seed=1))
    batch.pop("task_id")
    gradient = Gradient(
        Forward(model),
        CrossEntropy(weights),
        micro_rows=micro_rows,
        device=CPU,
    )
    learned = [*model.adapter.parameters(), *model.head.parameters(), penalty.weight]
    loss = gradient.accumulate(batch, [penalty], learned)
    return loss, [p.grad for p in learned if p.grad is not None]


@pytest.mark.parametrize("weights", [None, [0.3, 2.0]])
@pytest.mark.parametrize("micro_rows", [1, 3, 4, 9])
def test_micro_batches_add_up_to_the_whole_batch(micro_rows: int, weights: list[float] | None) -> None:
    loss, whole = gradients(10, weights)
    other, parts = gradients(micro_rows, weights)
    assert other == pytest.approx(loss, rel=1e-6)
    assert len(parts) == len(whole) == 5
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-5)


class _Told(CrossEntropy):
    """Weighs each row by a column of the batch that no model reads."""

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        losses = nn.functional.cross_entropy(logits.float(), batch["labels"], reduction="none")
        return (losses * batch[COLUMN]).sum()

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        return float(batch[COLUMN].sum())


@pytest.mark.parametrize("micro_rows", [10, 3])
def test_a_loss_sees_the_columns_of_its_rows(micro_rows: int) -> None:
    model = Bag().eval()
    batch = next(encoded_task().train.batches(10, shuffle=True, seed=1))
    batch.pop("task_id")
    weights = torch.arange(float(len(batch["labels"])))
    gradient = Gradient(Forward(model), _Told(), micro_rows=micro_rows, device=CPU)
    loss = gradient.accumulate({**batch, COLUMN: weights}, [], list(model.adapter.parameters()))
    losses = nn.functional.cross_entropy(Forward(model)(batch), batch["labels"], reduction="none")
    assert loss == pytest.approx(float((losses * weights).sum() / weights.sum()), rel=1e-5)


def test_terms_of_the_modules_count_once() -> None:
    _, grads = gradients(3)
    assert grads[-1].tolist() == pytest.approx([2.0, -4.0])


class _Hungry(Bag):
    """Runs out of memory for more than `limit` rows, after it has drawn random numbers.

    With `really`, it asks for more bytes than a process can address.
    """

    def __init__(self, limit: int, *, really: bool = False) -> None:
        super().__init__()
        self.limit, self.really = limit, really
        self.draws: list[float] = []
        self.tried: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        self.draws.append(float(torch.rand(1)))
        self.tried.append(len(input_ids))
        if len(input_ids) > self.limit:
            if self.really:
                torch.empty(1 << 46)
            raise torch.OutOfMemoryError("not enough")
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("really", [False, True])
def test_a_step_that_runs_out_of_memory_starts_again_with_half_the_rows(really: bool) -> None:
    plan = TrainingPlan(steps=3, batch_size=16, device="cpu")
    hungry = _Hungry(limit=5, really=really)
    result = train(FakeHybrid(hungry), encoded_task(), plan)
    expected = train(FakeHybrid(Bag()), encoded_task(), plan)
    assert hungry.tried[:3] == [16, 8, 4]
    assert result.micro_rows == 4
    assert result.losses == pytest.approx(expected.losses, rel=1e-5)
    assert hungry.draws[0] == hungry.draws[1] == hungry.draws[2]


def test_after_three_halvings_it_says_what_to_do() -> None:
    hungry = _Hungry(limit=0)
    with pytest.raises(OutOfMemory, match="even with 2 rows at once; lower `max_length`"):
        train(FakeHybrid(hungry), encoded_task(), TrainingPlan(steps=3, batch_size=16, device="cpu"))
    assert hungry.tried == [16, 8, 4, 2]
    assert all(p.grad is None for p in hungry.parameters())


def test_other_errors_of_a_step_are_passed_on() -> None:
    class Broken(Bag):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train(FakeHybrid(Broken()), encoded_task(), TrainingPlan(steps=1, batch_size=4, device="cpu"))
