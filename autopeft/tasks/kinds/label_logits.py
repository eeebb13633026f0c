"""Logits of the label words at one position of each row, of all that a language model predicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import UsageError
from autopeft.injection.frames import reading
from autopeft.tasks.tokens import BESIDE

__all__ = ["LABEL_WORDS", "READ_AT", "label_logits", "read_in", "read_words"]

READ_AT, LABEL_WORDS = f"{BESIDE}read_at", f"{BESIDE}label_words"
"""What a batch has of these: (B,), the place of a row's token among the row's own, and (B, classes)."""


def read_in(batch: Mapping[str, Tensor]) -> Tensor:
    """Where the token of each row is that is read, (B, L), padding before rows counted."""
    mask = batch["attention_mask"]
    position = mask.argmax(dim=1) + batch[READ_AT]
    return torch.arange(mask.shape[1], device=mask.device) == position[:, None]


def label_logits(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (B, classes) of the label words, of those (B, L, vocabulary) of all positions; what `read_words`
    has picked already stays.

    Raises:
        UsageError: they are of neither form.
    """
    if logits.shape == batch[LABEL_WORDS].shape:
        return logits
    if logits.shape[:2] != batch["attention_mask"].shape or logits.ndim != 3:
        raise UsageError(
            f"A language model has logits of its whole vocabulary at each position, but got the shape "
            f"{tuple(logits.shape)} for {tuple(batch['attention_mask'].shape)} tokens; take another model."
        )
    return logits[read_in(batch)].gather(1, batch[LABEL_WORDS])


@contextmanager
def read_words(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the vocabulary's projection computes the read position of each row and the label words alone:
    logits are (B, classes). Where something acts on its logits, it computes the whole vocabulary there, and
    the label words are picked afterwards. Of a model that predicts by no such map of its own (DeBERTa's
    multiplies by the embeddings) all logits are computed, for `label_logits` to pick from.

    Raises:
        UsageError: the model has no such projection.
    """
    project = getattr(model, "get_output_embeddings", lambda: None)()
    if project is None:
        raise UsageError(
            f"{type(model).__name__} has no projection to a vocabulary: it is no language model."
        )
    config: Any = model.config
    if project.weight.shape[0] < config.get_text_config().vocab_size:
        yield
        return
    positions, words = read_in(batch), batch[LABEL_WORDS][0]

    def narrowed(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][positions], *args[1:])

    def picked(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output[:, words]

    with reading(positions), _only(project, words) as few:
        handles = [project.register_forward_pre_hook(narrowed)]
        if not few:
            handles.append(project.register_forward_hook(picked))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _only(project: nn.Module, words: Tensor) -> Iterator[bool]:
    """Within, the projection computes these words alone, where it is a plain linear map and nobody waits for
    its logits; whether it does."""
    plain = type(project) is nn.Linear and "forward" not in vars(project) and not project._forward_hooks
    if not plain:
        yield False
        return

    def forward(hidden: Tensor) -> Tensor:
        weight: Any = project.weight
        bias: Any = project.bias
        return F.linear(hidden, weight[words], None if bias is None else bias[words])

    project.forward = forward
    try:
        yield True
    finally:
        del project.forward
