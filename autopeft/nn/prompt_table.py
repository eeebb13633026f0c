"""A prompt as a table of rows, which methods train in front of the input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, Slot, Stored
from autopeft.nn.stored_prompts import only_prompt
from autopeft.spec import BackboneSpec, Site

__all__ = ["PromptInit", "PromptTable", "prompt_width"]

PromptInit = Literal["uniform", "normal", "vocabulary"]
_FREQUENT = 5000


class PromptTable(nn.Module):
    """A prompt (length, d) in front of the embeddings, the parameter `table`.

    From `uniform` [−0.5, 0.5], `normal` N(0, 0.02), or `vocabulary`, rows of the token embedding. With
    `words`, ids of tokens, it begins as their embeddings, repeated or cut to the length. With `labels`, ids
    of the tokens of each, its first rows are the means of their embeddings, one row for each label as far as
    there are rows; the others are as `init` has them.
    """

    def __init__(
        self,
        length: int,
        width: int,
        init: PromptInit,
        words: Sequence[int] | None = None,
        labels: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        self.init, self.words, self.labels = init, words, labels
        self.table = nn.Parameter(torch.empty(length, width))
        # Drawn here, so that the seed of the modules' init settles which rows are copied later.
        self._seed = int(torch.randint(2**62, ()))
        if init == "normal":
            nn.init.normal_(self.table, std=0.02)
        else:
            nn.init.uniform_(self.table, -0.5, 0.5)

    @torch.no_grad()
    def initialise_prompt(self, embedding: Tensor) -> None:
        """Copy rows of the token embeddings (V, d): those of the `words`, or with init `vocabulary` random
        ones of the first 5,000; then the means of the `labels`."""
        length, known = len(self.table), min(_FREQUENT, len(embedding))
        given = [*(self.words or ()), *chain.from_iterable(self.labels)]
        wrong = next((word for word in given if not 0 <= word < len(embedding)), None)
        if wrong is not None:
            raise MethodError(
                f"A prompt is to begin as the token {wrong}, but this vocabulary has those from 0 to "
                f"{len(embedding) - 1:,}; give ids of this model's tokenizer."
            )
        rows: Tensor | None = None
        if self.words is not None:
            rows = torch.tensor(self.words).repeat(-(-length // len(self.words)))
        elif self.init == "vocabulary":
            draw = torch.Generator().manual_seed(self._seed)
            rows = torch.cat([torch.randperm(known, generator=draw) for _ in range(-(-length // known))])
        if rows is not None:
            self.table.copy_(embedding[rows[:length].to(embedding.device)])
        for row, label in zip(self.table, self.labels, strict=False):
            row.copy_(embedding[torch.tensor(label, device=embedding.device)].mean(0))

    @torch.no_grad()
    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Begin with a stored prompt (length, d)."""
        self.table.copy_(only_prompt(stored, *self.table.shape))

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(len(self.table)),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return self.table[None]


def prompt_width(name: str, sites: Sequence[Site], spec: BackboneSpec, init: str) -> int:
    """d of the embeddings that a prompt of the method `name` goes in front of.

    Raises:
        MethodError: there is not one such place, or it has no vocabulary to copy from.
    """
    if init in ("vocabulary", "labels") and spec.modality != "text":
        raise MethodError(
            f"{name} with init {init!r} copies token embeddings, which the "
            f"{spec.modality} backbone {spec.family!r} does not have; use init 'uniform' or 'normal'."
        )
    if len(sites) != 1:
        raise MethodError(
            f"{name} sits on the input embeddings of one stack, but got "
            f"{[s.path for s in sites]}; leave `sites` out."
        )
    return sites[0].out_features
