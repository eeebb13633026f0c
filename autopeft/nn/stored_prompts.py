"""Prompts that other trainings have left: read, compared and averaged (SPoT, TPT).

Vu et al. 2022, arXiv:2110.07904 §3: a task is told by its prompt P (l, d) after few steps, and two tasks by
the cosine of the means of their rows, or by the mean of the cosines of all pairs of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import MethodError
from autopeft.method import PeftFormat, Stored, get_method, method_names

__all__ = ["Similarity", "mixture", "only_prompt", "prompt_similarity", "stored_prompt"]

Similarity = Literal["mean", "pairs"]
_PROMPT = "table"  # as `PromptTable` calls it


def _leaves_rows(method: str) -> bool:
    """Whether a method leaves rows among the input embeddings and nothing else, as peft's prompt is."""
    peft: PeftFormat | None = getattr(get_method(method), "peft", None)
    return peft is not None and peft.kind == "prompt"


def stored_prompt(stored: Stored, length: int, width: int, name: str | None = None) -> Tensor:
    """The prompt (length, width) of an entry, of the method that asks or of one that leaves nothing but rows
    among the input embeddings, which are its `table` or its only tensor.

    Args:
        name: of another tensor than the prompt itself.

    Raises:
        MethodError: it is of another method, has no prompt, or one of another shape.
    """
    if not stored.own and not _leaves_rows(stored.method):
        known = ", ".join(filter(_leaves_rows, method_names()))
        raise MethodError(
            f"{stored.label} was to give a prompt, rows for the input embeddings, which {stored.method} does "
            f"not leave as such; a prompt starts from one of {known}, or of its own method: name such an "
            "entry by 'from:'."
        )
    if name is None:
        alone = next(iter(stored.tensors)) if len(stored.tensors) == 1 else _PROMPT
        name = _PROMPT if _PROMPT in stored.tensors else alone
    way_out = f"start from a prompt of length {length} on a backbone of width {width}, or set its `length`"
    return stored.tensor(name, (length, width), way_out)


def only_prompt(stored: Sequence[Stored], length: int, width: int) -> Tensor:
    """The prompt of the only entry that is named.

    Raises:
        MethodError: there are several, or as `stored_prompt`.
    """
    if len(stored) != 1:
        got = ", ".join(s.label for s in stored)
        raise MethodError(
            f"One prompt is to start from, but 'from' names {got}; `spot` chooses among several."
        )
    return stored_prompt(stored[0], length, width)


def prompt_similarity(one: Tensor, other: Tensor, kind: Similarity = "mean") -> Tensor:
    """How alike two prompts (l, d) and (m, d) are, a scalar from −1 to 1.

    `mean` is the cosine of the means of their rows, `pairs` the mean of the cosines of all pairs of rows.
    """
    if kind == "mean":
        return F.cosine_similarity(one.mean(0), other.mean(0), dim=0)
    return (F.normalize(one, dim=1) @ F.normalize(other, dim=1).T).mean()


def mixture(similarities: Tensor, top: int) -> Tensor:
    """Weights (n,) that add up to 1: of the `top` most similar, in proportion to their similarities.

    Similarities below 0 count as 0; where none of the chosen is above 0, each has the same weight.
    """
    chosen = similarities.topk(min(top, len(similarities))).indices
    weights = torch.zeros_like(similarities)
    weights[chosen] = similarities[chosen].clamp(min=0)
    if not weights.sum() > 0:
        weights[chosen] = 1.0
    return weights / weights.sum()
