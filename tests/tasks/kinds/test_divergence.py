"""How far apart two answers are, in each kind's own reading of logits: against torch's distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, kl_divergence

from autopeft.nn import symmetric_divergence
from autopeft.tasks.kinds import Loss
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.tasks.kinds.conversation_tokens import IGNORED
from autopeft.tasks.kinds.likelihoods import AnswerLoss, predicting
from autopeft.tasks.kinds.mixture import MixtureLoss
from autopeft.tasks.kinds.multi_label import LabelwiseLoss
from autopeft.tasks.kinds.question_answering import SpanLoss
from autopeft.tasks.kinds.regression import SquaredError
from autopeft.tasks.kinds.token_classification import TagLoss

WEIGHTS = [0.5, 2.0, 1.5]
CLASSES = torch.tensor([0, 2, 1, 2])
TAGS = torch.tensor([[0, IGNORED, 2, 1, IGNORED], [IGNORED, 1, 1, IGNORED, IGNORED]])
LABELS = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
ENDS = torch.tensor([[1, 2], [0, 0], [3, 4]])


def apart(p: Distribution, q: Distribution) -> Tensor:
    """½·[KL(q‖p) + KL(p‖q)]."""
    return 0.5 * (kl_divergence(q, p) + kl_divergence(p, q))


def classes(first: Tensor, second: Tensor) -> Tensor:
    return apart(Categorical(logits=first), Categorical(logits=second))


def weighted(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    weights = torch.tensor(WEIGHTS)[labels.clamp(min=0)] * (labels != IGNORED)
    return classes(first, second) * weights


Case = tuple[Loss, Tensor, tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]
CASES: dict[str, Case] = {
    "classes": (CrossEntropy(), CLASSES, (4, 3), classes),
    "weighted classes": (CrossEntropy(WEIGHTS), CLASSES, (4, 3), lambda a, b: weighted(a, b, CLASSES)),
    "numbers": (SquaredError(), torch.randn(4), (4, 1), lambda a, b: torch.zeros(4)),
    "labels": (LabelwiseLoss(), LABELS, (2, 3), lambda a, b: apart(Bernoulli(logits=a), Bernoulli(logits=b))),
    "tags": (TagLoss(), TAGS, (2, 5, 3), lambda a, b: classes(a, b)[TAGS != IGNORED]),
    "weighted tags": (TagLoss(WEIGHTS), TAGS, (2, 5, 3), lambda a, b: weighted(a, b, TAGS)),
    "ends": (SpanLoss(), ENDS, (3, 6, 2), lambda a, b: classes(a.mT, b.mT).mean(1)),
    **{
        f"tokens, {ahead} ahead": (
            AnswerLoss(ahead),
            TAGS,
            (2, 5, 7),
            lambda a, b, ahead=ahead: classes(a, b)[predicting(TAGS, ahead)],
        )
        for ahead in (0, 1)
    },
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_of_what_the_loss_counts(case: str) -> None:
    loss, labels, shape, expected = CASES[case]
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(shape, generator=generator) for _ in range(2))
    batch = {"labels": labels}
    found = loss.divergence(first, second, batch)
    torch.testing.assert_close(found, expected(first, second).sum())
    assert (float(found) > 0.01) == (case != "numbers")
    torch.testing.assert_close(loss.divergence(first, first, batch), torch.tensor(0.0))
    rows = [
        loss.divergence(first[i : i + 1], second[i : i + 1], {"labels": labels[i : i + 1]})
        for i in range(len(labels))
    ]
    torch.testing.assert_close(torch.stack(rows).sum(), found)


def test_tokens_that_alone_were_computed_give_the_same() -> None:
    loss, labels, shape, _ = CASES["tokens, 1 ahead"]
    first, second = torch.randn(shape), torch.randn(shape)
    read, batch = predicting(labels, 1), {"labels": labels}
    whole = loss.divergence(first, second, batch)
    torch.testing.assert_close(loss.divergence(first[read], second[read], batch), whole)


def test_of_several_tasks_each_has_its_own() -> None:
    """Narrower logits are padded, with what no distribution knows."""
    loss = MixtureLoss([CrossEntropy(), CrossEntropy()], [3, 2])
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    ids = torch.tensor([0, 1, 0, 1])
    for logits in (first, second):
        logits[ids == 1, 2] = -torch.inf
    expected = classes(first[ids == 0], second[ids == 0]).sum()
    expected = expected + classes(first[ids == 1, :2], second[ids == 1, :2]).sum()
    batch = {"labels": torch.zeros(4, dtype=torch.long), "task_id": ids}
    torch.testing.assert_close(loss.divergence(first, second, batch), expected)


def test_the_gradient_is_half_the_difference_and_that_of_half_precision_as_fine() -> None:
    first, second = torch.randn(5, 4).requires_grad_(), torch.randn(5, 4).requires_grad_()
    symmetric_divergence(first, second).sum().backward()  # type: ignore[no-untyped-call]
    p, q = first.softmax(-1), second.softmax(-1)
    for logits, wanted in ((first, 0.5 * (p - q)), (second, 0.5 * (q - p))):
        torch.testing.assert_close(logits.grad, wanted.detach())
    rough: Any = symmetric_divergence(first.bfloat16(), second.bfloat16())
    assert rough.dtype == torch.float32
