"""What the rows of a batch have in common at their front is computed once.

Prompts to a language model often begin alike: with the template's system message, or with one instruction for
all rows. A causal stack makes the same of such tokens in every row, so one row stands for all: its keys and
values go to each of them, and its gradient is the sum of theirs. Rows may also begin alike in groups, as the
choices of one question do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from autopeft.backbones import StackPlaces
from autopeft.composition import get_composition
from autopeft.graph import CompositionGraph, is_rowwise_in, is_rowwise_on_logits
from autopeft.tasks.kinds import IGNORED
from autopeft.tasks.kinds.generation import CACHES, LEAST
from autopeft.training.losses import parameters_of

__all__ = ["SharedInGroups", "SharedPrefix", "Unshareable", "is_by_position", "may_share"]


class Unshareable(Exception):  # noqa: N818
    """The model keeps no keys and values that could be shared."""


Logits = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Tensor]
"""Logits of a batch with the stored states of untouched layers, by stack."""

SAVED = 0.1
"""Share of its tokens that has to be saved: each batch takes two forwards."""


def may_share(graph: CompositionGraph, stack: StackPlaces) -> bool:
    """Whether all that acts in a stack does so position by position, no prompts stand in front, no prefix is
    made of the text, and no composition draws for all positions together."""
    whole = any(e.traits.changes_length or e.traits.sees_text for e in graph.entries.values())
    whole = whole or any(get_composition(node.kind).traits.stochastic for node in graph.nodes())
    return not whole and is_by_position(graph, stack)


def is_by_position(graph: CompositionGraph, stack: StackPlaces) -> bool:
    """Whether all that acts in a stack, and on logits, does so position by position."""
    return is_rowwise_on_logits(graph) and all(
        is_rowwise_in(graph, stack.map.name, layer) for layer in range(len(stack.layers))
    )


class SharedPrefix:
    """Runs batches of token rows in two parts: what all rows begin with, and what follows in each.

    Args:
        model: a language model.
        logits: runs it on a batch.
        skipped: how many layers are answered from the trunk, where it answers.
    """

    def __init__(self, model: nn.Module, logits: Logits, skipped: int) -> None:
        self._model, self._logits, self._skipped = model, logits, skipped

    def length(self, batch: Mapping[str, Tensor]) -> int:
        """How many tokens to share; 0 where that saves too little."""
        found = self.common(batch)
        rows, width = batch["input_ids"].shape
        return found if found * (rows - 1) >= SAVED * rows * width else 0

    @staticmethod
    def common(batch: Mapping[str, Tensor]) -> int:
        """How many tokens all rows begin with, and something follows; 0 where they are few. None of them
        predicts a learnt token, so that all logits are of the second part."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        alike = ((ids == ids[:1]) & (mask == 1)).all(dim=0)
        if "labels" in batch:
            alike[:-1] &= ~(batch["labels"] != IGNORED).any(dim=0)[1:]
        alike[-1] = False
        found = int(alike.long().cumprod(dim=0).sum())
        return found if found >= LEAST else 0

    def __call__(self, batch: Mapping[str, Tensor], states: Mapping[str, Tensor], length: int) -> Tensor:
        """Logits of the positions behind the first `length` tokens that the kind reads.

        Args:
            states: of untouched layers (B, L, width), by stack.

        Raises:
            Unshareable: nothing is left of the first part.
        """
        return self.follow(batch, states, length, self.begin(batch, states, length))

    def begin(self, batch: Mapping[str, Tensor], states: Mapping[str, Tensor], length: int) -> DynamicCache:
        """Run the first `length` tokens of the first row; its keys and values.

        Raises:
            Unshareable: the model takes none.
        """
        cache, along = DynamicCache(), _along(batch)
        first = {k: v[:1, :length] if k in along else v[:1] for k, v in batch.items()}
        kept = {self._past(): cache, "use_cache": True}
        self._logits(first | kept, {stack: state[:1, :length] for stack, state in states.items()})
        return cache

    def follow(
        self, batch: Mapping[str, Tensor], states: Mapping[str, Tensor], length: int, cache: DynamicCache
    ) -> Tensor:
        """Logits of the positions behind the first `length` tokens, of which `cache` has the keys and values.

        Raises:
            Unshareable: it has not.
        """
        (rows, width), along = batch["input_ids"].shape, _along(batch)
        rest = {k: v[:, length:] if k in along else v for k, v in batch.items()}
        rest["attention_mask"] = batch["attention_mask"]
        rest["position_ids"] = torch.arange(length, width, device=batch["input_ids"].device)[None]
        past = self._for_all(cache, rows, length, self._skipped if states else 0)
        kept = {self._past(): past, "use_cache": True}
        return self._logits(rest | kept, {stack: state[:, length:] for stack, state in states.items()})

    def _past(self) -> str:
        """What the model calls keys and values of earlier tokens."""
        names = parameters_of(self._model)
        past = next((name for name in CACHES if name in names), None)
        if past is None or not {"position_ids", "use_cache"} <= names:
            raise Unshareable
        return past

    def _for_all(self, cache: DynamicCache, rows: int, length: int, skipped: int) -> DynamicCache:
        """The keys and values of one row for all rows. A skipped layer has made none; as many zeros stand
        there, since models ask the first layer how long the past is."""
        made = [_kept(layer) for layer in cache.layers]
        if not made[skipped:] or any(not pair or pair[0].shape[-2] != length for pair in made[skipped:]):
            raise Unshareable
        found = DynamicCache()
        for index, pair in enumerate(made):
            keys, values = pair if index >= skipped else [torch.zeros_like(t) for t in made[-1]]
            found.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return found


class SharedInGroups(SharedPrefix):
    """Runs batches of token rows in two parts: what the rows of each group begin with, and what follows."""

    def lengths(self, batch: Mapping[str, Tensor], groups: Tensor) -> Tensor | None:
        """How many tokens the rows of each group (B,) begin with, (groups,), of which none predicts a learnt
        one; `None` where sharing them saves too little, or a group has none."""
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        first, ends = _first(groups), mask.sum(dim=1)
        alike = (ids == ids[first][groups]) & mask & mask[first][groups]
        alike[:, :-1] &= batch["labels"][:, 1:] == IGNORED
        alike &= torch.arange(ids.shape[1], device=ids.device) < (ends - 1)[:, None]
        rows = alike.long().cumprod(dim=1).sum(dim=1)
        found = rows.new_zeros(len(first)).scatter_reduce(0, groups, rows, "amin", include_self=False)
        rest = int((ends - found[groups]).max())
        computed = len(first) * int(found.max()) + len(ids) * rest
        return found if found.all() and computed <= (1 - SAVED) * ids.numel() else None

    def run(self, batch: Mapping[str, Tensor], groups: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the positions behind the first `lengths` tokens of each group that the kind reads.

        Raises:
            Unshareable: the model takes no keys and values.
        """
        along, longest = _along(batch), int(lengths.max())
        kept = torch.arange(longest, device=lengths.device) < lengths[:, None]
        places = torch.arange(longest, device=lengths.device)[None]
        begun = {k: v[_first(groups)] for k, v in batch.items()}
        begun |= {k: v[:, :longest] for k, v in begun.items() if k in along}
        begun |= {"attention_mask": kept.long(), "labels": torch.full_like(begun["labels"], IGNORED)}
        cache = DynamicCache()
        self._logits(begun | {self._past(): cache, "use_cache": True, "position_ids": places}, {})
        past = self._by_row(cache, groups, longest)
        rest = _behind(batch, along, kept[groups], lengths[groups])
        return self._logits(rest | {self._past(): past, "use_cache": True}, {})

    def _by_row(self, cache: DynamicCache, groups: Tensor, length: int) -> DynamicCache:
        found = DynamicCache()
        for index, layer in enumerate(cache.layers):
            pair = _kept(layer)
            if not pair or pair[0].shape[-2] != length:
                raise Unshareable
            keys, values = pair
            found.update(keys[groups], values[groups], index)
        return found


def _first(groups: Tensor) -> Tensor:
    """The first row of each group; the groups of rows are 0, 1, … in order."""
    return torch.searchsorted(groups.contiguous(), torch.arange(int(groups[-1]) + 1, device=groups.device))


def _behind(batch: Mapping[str, Tensor], along: set[str], kept: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """What follows the first `lengths` tokens of each row, moved to the left; in the mask it stands behind
    those that are `kept`, (B, …)."""
    ends = batch["attention_mask"].sum(dim=1)
    places = lengths[:, None] + torch.arange(int((ends - lengths).max()), device=lengths.device)
    inside = places < ends[:, None]
    places = places.clamp(max=batch["input_ids"].shape[1] - 1)
    rest = {k: v.gather(1, places) if k in along else v for k, v in batch.items()}
    mask = torch.cat([kept, inside], dim=1).long()
    labels = rest["labels"].masked_fill(~inside, IGNORED)
    return rest | {"attention_mask": mask, "labels": labels, "position_ids": places}


def _along(batch: Mapping[str, Tensor]) -> set[str]:
    """What has an entry for each token."""
    return {k for k, v in batch.items() if v.shape == batch["input_ids"].shape}


def _kept(layer: Any) -> list[Tensor]:
    """Keys and values (1, heads, positions, width) in a layer of a cache, or nothing."""
    found = [getattr(layer, name, None) for name in ("keys", "values")]
    return [t for t in found if isinstance(t, Tensor) and t.ndim == 4]
