"""The cached trunk: the layers below everything that a hybrid alters, answered from stored hidden states.

With the backbone's dropout off, these states are the same in every epoch and every trial, so each row's are
computed once for each backbone, split and depth. The skipped layers get an instance-level `forward`, which is
exact for every family (cutting the layer list is not: T5's relative bias lives in its first layer, and is
still taken from there). States are stored in fp16, so gradients differ by about 3e-4 from those without the
cache.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.assets import backbone_fingerprint, cache_dir
from autopeft.backbones import StackPlaces, base_model_of
from autopeft.injection.attention import attention_behind
from autopeft.tasks.encode import EncodedSplit
from autopeft.tasks.kinds.generation import LEAST
from autopeft.training.memory import with_fewer_rows
from autopeft.training.shared_prefix import SharedPrefix
from autopeft.training.trunk.store import Rows, StateStore, open_store

__all__ = ["Front", "Level", "Trunk"]

States = Mapping[str, Tensor]
_KEPT_OPEN = 16
_log = logging.getLogger("autopeft")


# Stores stay open between trials: each row's checksum is compared once in a process.
_OPEN: OrderedDict[tuple[str, str, str], StateStore] = OrderedDict()


@dataclass(frozen=True)
class Level:
    """The untouched layers of one stack; the states behind the last of them are stored.

    `embeddings` makes the first layer's input, which then nobody reads (`None` where it is no module of its
    own).
    """

    stack: str
    layers: tuple[nn.Module, ...]
    width: int
    embeddings: nn.Module | None = None

    @classmethod
    def of(cls, base: nn.Module, stack: StackPlaces, depth: int) -> Level:
        """The first `depth` layers of a stack."""
        layers = tuple(base.get_submodule(p) for p in stack.layers[:depth])
        # The module around the table adds positions and normalises. Its output counts as the first layer's
        # input only where nothing could lie in between: the widths agree.
        table = next((p for p in stack.places if p.site.name == "embeddings"), None)
        embeddings = None
        if table is not None and table.site.out_features == stack.hidden and stack.embeddings != table.exit:
            embeddings = None if stack.embeddings is None else base.get_submodule(stack.embeddings)
        return cls(stack.map.name, layers, stack.hidden, embeddings)


class _Reached(Exception):  # noqa: N818
    """The last state that was asked for is there; the rest of the forward is not needed."""


class Trunk:
    """Untouched layers of a model, and the stores of their states.

    Args:
        model: the model, with whatever is attached to it above the levels.
        levels: in the order in which the model runs them, none of them empty.
        forward: logits of a plain batch; it is left once the states are there.

    Attributes:
        depths: layers answered from the store, by stack.
        tuples: how many elements the output of a stack's layers has; 0 where it is no tuple.
        shares: whether what all rows of a split begin with is computed once, as causal stacks allow.
        rows_at_once: rows of one length that are computed at once, by default all; halved where memory does
            not suffice.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        levels: Sequence[Level],
        forward: Callable[[Mapping[str, Tensor]], Tensor],
    ) -> None:
        self.model, self.levels, self.forward = model, tuple(levels), forward
        first = next(base_model_of(model).parameters())
        self.device, self.dtype = first.device, first.dtype
        self.depths = {level.stack: len(level.layers) for level in self.levels}
        self.tuples: dict[str, int] = {}
        self.shares = False
        self.rows_at_once: int | None = None
        self._stores: dict[int, dict[str, StateStore] | None] = {}
        self._fronts: dict[int, Front | None] = {}

    # Computing
    # ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states (B, L, width) of a batch, by stack, from the model's own layers."""
        found: dict[str, Tensor] = {}

        watching = {level.layers[-1]: partial(self._watched, level, found) for level in self.levels}
        with _instead(watching), suppress(_Reached):
            self.forward(batch)
        return found

    def _watched(self, level: Level, found: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The last layer of a level as it is; its states are noted."""
        output = type(level.layers[-1]).forward(level.layers[-1], *args, **kwargs)
        found[level.stack] = output[0] if isinstance(output, tuple) else output
        self.tuples[level.stack] = len(output) if isinstance(output, tuple) else 0
        if level is self.levels[-1]:
            raise _Reached
        return output

    # Answering
    # ------------------------------------------------------------------------------------------------

    def states(self, split: EncodedSplit, rows: Rows, device: torch.device) -> dict[str, Tensor] | None:
        """States (B, L, width) for the batch that `split.collate(rows)` makes, by stack; `None` where they
        cannot be stored. Rows seen for the first time are computed and kept.

        Whether they can is asked of each batch by itself: it must not depend on what was seen before it, or a
        training would depend on those before it.

        Raises:
            OutOfMemory: memory does not suffice for single rows.
        """
        try:
            stores = self._open(split)
            if stores is None or not self._filled(split, rows, stores):
                return None
        except OSError as error:
            _log.info("hidden states are not kept any more: %s", error)
            self._stores[id(split)] = None
            return None
        return {
            stack: store.gather(*split.layout(rows, stack)).to(device, self.dtype)
            for stack, store in stores.items()
        }

    def _filled(self, split: EncodedSplit, rows: Rows, stores: dict[str, StateStore]) -> bool:
        """Whether all states of the rows are stored, which those that were missing are now, where fp16 holds
        them.

        Rows of one length together, without padding: what is stored must not depend on the batch that a
        row was first seen in, or a trial would depend on those before it. Without padding a row's arithmetic
        is the same in any company of its length. What all rows of the split begin with is computed once."""
        wanted = np.unique(np.concatenate([store.missing(rows) for store in stores.values()]))
        # Of a decoder with a side of its own the states depend on the lengths of both.
        lengths = np.stack([np.diff(split.offsets_of(stack))[wanted] for stack in stores], axis=1)
        for length in np.unique(lengths, axis=0):
            alike = wanted[(lengths == length).all(axis=1)]
            with_fewer_rows(
                partial(self._put, split, stores, alike),
                min(len(alike), self.rows_at_once or len(alike)),
                self.model,
                doing="Reading the layers that nothing changes",
            )
        return not any(store.beyond[rows].any() for store in stores.values())

    def _put(self, split: EncodedSplit, stores: dict[str, StateStore], alike: Rows, at_once: int) -> None:
        for start in range(0, len(alike), at_once):
            rows = alike[start : start + at_once]
            batch = {k: v.to(self.device) for k, v in split.collate(rows).items()}
            # What all rows of the split begin with is computed once.
            if id(split) not in self._fronts:
                length = _common(split) if self.shares else 0
                self._fronts[id(split)] = self.front(batch, length) if length >= LEAST else None
            front = self._fronts[id(split)]
            found = self.compute(batch) if front is None else front.with_rest(batch)
            for stack, states in found.items():
                for row, own in zip(rows, states, strict=True):
                    stores[stack].put(int(row), own)

    def front(self, batch: Mapping[str, Tensor], length: int) -> Front:
        """The states of the first `length` tokens of a batch's first row, for rows that begin alike.

        Raises:
            Unshareable: the model keeps no keys and values that could be shared.
        """
        return Front(self, batch, length)

    def _open(self, split: EncodedSplit) -> dict[str, StateStore] | None:
        """The store of each level's states of a split; `None` where there is no room, or fp16 does not hold
        them."""
        if id(split) in self._stores:
            return self._stores[id(split)]
        self._stores[id(split)] = None
        found: dict[str, StateStore] = {}
        for level in self.levels:
            identity = {
                "backbone": backbone_fingerprint(self.model),
                "stack": level.stack,
                "depth": len(level.layers),
                "device": self.device.type,
                "attention": attention_behind(self.model.config._attn_implementation),
                "versions": [torch.__version__, transformers.__version__],
            }
            # A process may be told of another cache meanwhile.
            key = (str(cache_dir()), split.fingerprint, json.dumps(identity, sort_keys=True))
            if key in _OPEN and not _OPEN[key].folder.exists():
                del _OPEN[key]  # removed meanwhile to make room: what would be added to it is lost
            store = _OPEN.get(key) or open_store(split, identity, level.width, level.stack)
            if store is None:
                return None
            found[level.stack] = _OPEN[key] = store
            _OPEN.move_to_end(key)
            while len(_OPEN) > _KEPT_OPEN:
                _OPEN.popitem(last=False)
        # Where the first row is beyond fp16 all are likely to be: by a huge state at the first token.
        if self._filled(split, np.zeros(1, dtype=np.int64), found):
            self._stores[id(split)] = found
        return self._stores[id(split)]

    @contextmanager
    def laid(self, states: States) -> Iterator[None]:
        """Within, the untouched layers of every stack in `states` answer with them."""
        swaps: dict[nn.Module, Callable[..., Any]] = {}
        for level in self.levels:
            if level.stack in states:
                if level.embeddings is not None:
                    swaps[level.embeddings] = partial(_answer, level.embeddings, states[level.stack], 0)
                last = len(level.layers) - 1
                for i, layer in enumerate(level.layers):
                    answer = states[level.stack] if i == last else None
                    swaps[layer] = partial(_answer, layer, answer, self.tuples[level.stack])
        with _instead(swaps):
            yield


class Front:
    """The states of the tokens that rows begin with, in the only stack of a language model."""

    def __init__(self, trunk: Trunk, batch: Mapping[str, Tensor], length: int) -> None:
        self._trunk, self.length = trunk, length
        (self._stack,) = trunk.depths
        self._shared = SharedPrefix(trunk.model, self._compute, 0)
        self._made: list[Tensor] = []
        with torch.no_grad():
            self._cache = self._shared.begin(batch, {}, length)
        self._front = self._made.pop()

    def _compute(self, batch: Mapping[str, Any], _: States) -> Tensor:
        self._made = [self._trunk.compute(batch)[self._stack]]
        return self._made[0]

    def with_rest(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states (B, L, width) of rows of one length that begin so, by stack."""
        rest = self._shared.follow(batch, {}, self.length, self._cache)
        return {self._stack: torch.cat([self._front.expand(len(rest), -1, -1), rest], dim=1)}


def _common(split: EncodedSplit) -> int:
    """How many tokens all rows of a split begin with, and something follows in each."""
    most = int(split.lengths.min()) - 1
    if most < 1 or len(split) < 2:
        return 0
    rows = split.ids[split.offsets[:-1, None] + np.arange(most)]
    return int((rows == rows[:1]).all(axis=0).cumprod().sum())


def _answer(layer: nn.Module, states: Tensor | None, elements: int, *args: Any, **kwargs: Any) -> Any:
    """The output of a layer with `states`, or what came in, as its hidden states.

    What a layer returns beside them (T5's relative bias) does not depend on the row: the layer makes it from
    the first row alone.

    Args:
        elements: how many the layer's output has; 0 where it is no tuple.
    """
    answer = args[0] if states is None else states
    if elements < 2:
        return (answer,) if elements else answer
    rows = len(args[0])
    with torch.no_grad():
        output = type(layer).forward(
            layer,
            *(_first(a, rows) for a in args),
            **{name: _first(value, rows, name) for name, value in kwargs.items()},
        )
    return (answer, *output[1:])


def _first(value: Any, rows: int, name: str = "") -> Any:
    """The first row of what has one for each row of the batch; BLOOM's `alibi` is (batch · heads, …)."""
    if name == "alibi" and isinstance(value, Tensor):
        return value[: len(value) // rows]
    if isinstance(value, tuple):  # rotary tables
        return tuple(_first(part, rows) for part in value)
    return value[:1] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value


@contextmanager
def _instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules a forward of their own; taken off again on leaving."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
