"""The task loss, computed from logits.

Labels never reach the model's forward: a labelled Hugging Face forward writes `config.problem_type`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TaskLoss", "logits_of", "slice_rows"]


class TaskLoss:
    """Cross-entropy (optionally weighted by class) or, for regression, the mean squared error.

    Exact over micro-batches: `total` returns the undivided sum of the losses of some rows and `weight` what
    the sum over the whole batch is divided by, so that Σ total(micro) / weight(batch) is the loss of the
    batch.
    """

    def __init__(self, kind: str, class_weights: Sequence[float] | None = None) -> None:
        self.kind = kind
        self.class_weights = (
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        )

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over rows; logits (rows, classes) or (rows, 1), labels (rows,). In fp32."""
        logits = logits.float()
        if self.kind == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        return F.cross_entropy(logits, labels, weight=weights, reduction="sum")

    def weight(self, labels: Tensor) -> float:
        """What a batch's sum is divided by: its rows, or the sum of its rows' class weights."""
        if self.kind == "regression" or self.class_weights is None:
            return float(labels.shape[0])
        return float(self.class_weights[labels.cpu()].sum())

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.total(logits, labels) / self.weight(labels)


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (rows, classes) of an unlabelled forward.

    `task_id` goes to models with modules on them, whose forward takes further keyword arguments.
    """
    inputs: dict[str, Any] = {k: v for k, v in batch.items() if k not in ("labels", "task_id")}
    names = _parameters(type(model).forward)
    if "task_id" in batch and None in names and _has_modules(model):
        inputs["task_id"] = batch["task_id"]
    if "use_cache" in names:
        inputs["use_cache"] = False  # nobody generates: keys and values would be kept for nothing
    output: Any = model(**inputs)
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


@lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> frozenset[str | None]:
    """Names of a forward's parameters, and `None` where it takes further keywords."""
    found = inspect.signature(forward).parameters.values()
    return frozenset(None if p.kind is p.VAR_KEYWORD else p.name for p in found)


def _has_modules(model: nn.Module) -> bool:
    return any(True for _ in getattr(model, "autopeft", nn.Module()).children())


def slice_rows(batch: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """Rows start…stop of every tensor of a batch (padding stays that of the batch)."""
    return {k: v[start:stop] for k, v in batch.items()}
