"""Likelihoods of answers: the loss that is minimised, what is kept of each row, and the metrics of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import UsageError
from autopeft.injection.frames import reading
from autopeft.nn import symmetric_divergence
from autopeft.tasks.kinds.conversation_tokens import IGNORED
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.scorer import Loss

__all__ = [
    "LIKELIHOOD",
    "TOKEN_ACCURACY",
    "AnswerLoss",
    "predicting",
    "read_alone",
    "row_likelihoods",
    "token_loss",
]

Numbers = NDArray[Any]


def predicting(labels: Tensor, ahead: int) -> Tensor:
    """The positions (B, L) whose logits predict a learnt token, which stands `ahead` positions after."""
    read = labels != IGNORED
    if ahead:
        read = torch.zeros_like(read)
        read[:, :-ahead] = labels[:, ahead:] != IGNORED
    return read


def _read(logits: Tensor, labels: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """Logits (N, vocabulary) in fp32 of the N learnt tokens, and these (N,)."""
    if logits.ndim == 3:
        logits = logits[predicting(labels, ahead)]
    wanted = labels[:, ahead:]
    return logits.float(), wanted[wanted != IGNORED]


class AnswerLoss(Loss):
    """Cross-entropy of each learnt token given those before it, divided by their number: the loss of
    transformers for labels that are -100 elsewhere, exact over micro-batches.

    Args:
        ahead: 1 where a model reads what it predicts, as decoders do: the logits at a token are of the next
            one. 0 where a decoder's inputs are the labels moved by one, so that both stand at one place.
    """

    def __init__(self, ahead: int = 1) -> None:
        self.ahead = ahead

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of logits (B, L, vocabulary), or (N, vocabulary) of the positions that predict the N learnt tokens
        of labels (B, L) (see `read_alone`), row after row."""
        return F.cross_entropy(*_read(logits, batch["labels"], self.ahead), reduction="sum")

    def divergence(self, logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Over the learnt tokens; logits are as in `total`."""
        read = [_read(found, batch["labels"], self.ahead)[0] for found in (logits, others)]
        return symmetric_divergence(*read).sum()

    def each(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of each row the mean over its learnt tokens; 0 where it has none."""
        labels = batch["labels"]
        logits, wanted = _read(logits, labels, self.ahead)
        read = predicting(labels, self.ahead)
        rows, counts = read.nonzero()[:, 0], read.sum(dim=1).clamp(min=1)
        losses = F.cross_entropy(logits, wanted, reduction="none")
        return losses.new_zeros(len(labels)).index_add(0, rows, losses) / counts

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        """The learnt tokens that something predicts; 1 where there are none, and nothing is lost."""
        return float(max(1, int((batch["labels"][:, self.ahead :] != IGNORED).sum())))


@contextmanager
def read_alone(model: nn.Module, read: Tensor) -> Iterator[None]:
    """Within, the vocabulary's projection computes these positions (B, L) alone: logits are (N, vocabulary).
    At 135M parameters that matrix is the largest part of a step.

    Raises:
        UsageError: the model has no such projection.
    """
    project = getattr(model, "get_output_embeddings", lambda: None)()
    if project is None:
        raise UsageError(
            f"{type(model).__name__} has no projection to a vocabulary: it is no language model."
        )

    def narrowed(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][read], *args[1:])

    handle = project.register_forward_pre_hook(narrowed)
    try:
        with reading(read):
            yield
    finally:
        handle.remove()


def row_likelihoods(logits: Tensor, labels: Tensor, ahead: int = 1) -> Numbers:
    """Of each row the sum of the negative log-likelihoods of its learnt tokens, their number, and how many of
    them are the most probable, (rows, 3) in float64; arguments as of `AnswerLoss.total`."""
    logits, wanted = _read(logits, labels, ahead)
    losses = F.cross_entropy(logits, wanted, reduction="none").double().cpu().numpy()
    right = (logits.argmax(dim=-1) == wanted).cpu().numpy()
    rows = predicting(labels, ahead).nonzero()[:, 0].cpu().numpy()
    counted = [
        np.bincount(rows, weights=w, minlength=len(labels)) for w in (losses, np.ones(len(rows)), right)
    ]
    return np.stack(counted, axis=1)


def token_loss(likelihoods: Numbers) -> float:
    """Mean negative log-likelihood of a learnt token, of the rows of `row_likelihoods`; 0 where there is no
    such token."""
    tokens = float(likelihoods[:, 1].sum())
    return float(likelihoods[:, 0].sum()) / tokens if tokens else 0.0


def _likelihood(outputs: Numbers, labels: Numbers) -> float:
    return math.exp(-token_loss(outputs))


def _token_accuracy(outputs: Numbers, labels: Numbers) -> float:
    tokens = float(outputs[:, 1].sum())
    return float(outputs[:, 2].sum()) / tokens if tokens else 0.0


LIKELIHOOD = Metric(
    "likelihood", 0, 1, "geometric mean of the probabilities of an answer's tokens, 1/perplexity",
    _likelihood, raw=True,
)  # fmt: skip
TOKEN_ACCURACY = Metric(
    "token_accuracy", 0, 1, "share of an answer's tokens that are the most probable ones", _token_accuracy,
    raw=True,
)  # fmt: skip
