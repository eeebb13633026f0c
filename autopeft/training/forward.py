"""Logits by the shortest way: untouched layers from the store, the last layer for what is read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import StackPlaces, base_model_of
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid
from autopeft.injection.depth import trunk_depths
from autopeft.injection.rows import Reader, ReadRows, last_layer_is_rowwise, reader_of, some_of
from autopeft.method import Slot
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.kinds import TaskKind
from autopeft.tasks.tokens import mask_of
from autopeft.training.comparing import alike, drawn, draws, is_rough, moved
from autopeft.training.contexts import evaluation_mode, generators_kept, training_mode
from autopeft.training.contracts import Trainable
from autopeft.training.distributed import team_of
from autopeft.training.losses import logits_of
from autopeft.training.packing import Packing, check_packing
from autopeft.training.plan import TrainingPlan
from autopeft.training.shared import SharedInGroups, SharedPrefix, Unshareable, is_by_position, may_share
from autopeft.training.trunk import Level, Trunk

__all__ = ["Forward", "packed_forward", "sharing_forward", "shortest_forward"]

_PREFIX = "trunk_"
_DENSE = 0.5  # of the backbone's parameters


class Forward:
    """What turns batches into logits. Without arguments beyond the model, the model's plain forward.

    Attributes:
        trunk: answers untouched layers; `None` computes them.
        rows: narrows the last layer to the positions that the head reads, or the loss of a language model;
            `None` computes all of them.
        ends: leaves out the tokens behind the last one that is read; without it all are computed.
        shares: computes once what the rows of a batch begin with; without it each row has its own.
        groups: computes once what the rows of a group begin with that the kind says (`Encoder.begin_alike`),
            where no gradient is asked for; given up where the first such batch has other logits by it.
        packs: lays several texts in one row; everything else is then computed.
        kind: of task, which takes the logits from the model's output; `None` for its `logits`.
        untouched: whether the trunk's layers still are; asked before each batch.
        dense: whether about as much trains as the backbone has; asked before each batch. Its weights are then
            made anew in each forward and kept for the backward, and two forwards would keep them twice.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        trunk: Trunk | None = None,
        rows: ReadRows | None = None,
        untouched: Callable[[], bool] = lambda: True,
        kind: TaskKind | None = None,
        shares: bool = False,
        dense: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.trunk, self.rows, self.untouched = model, trunk, rows, untouched
        self.kind, self.shares, self.dense = kind, shares, dense
        self.ends = self.groups = False
        self.packs: Packing | None = None
        self._groups_hold: bool | None = None

    def batches(
        self,
        split: EncodedSplit,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        device: torch.device,
        among: NDArray[np.int64] | None = None,
        skip: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """The batches of `EncodedSplit.batch_indices`, with the stored states of untouched layers; the first
        `skip` are left out."""
        for rows in split.batch_indices(batch_size, shuffle=shuffle, seed=seed, among=among)[skip:]:
            batch = split.collate(rows, device=device)
            if self.trunk is not None and self.untouched():
                states = self.trunk.states(split, np.asarray(rows), device)
                batch.update({_PREFIX + stack: tensor for stack, tensor in (states or {}).items()})
            yield batch

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (rows, …) of a batch or of some of its rows, of what its kind of task reads."""
        if self.packs is not None:
            return self.logits(self.packs(batch), {})
        states = {k.removeprefix(_PREFIX): v for k, v in batch.items() if k.startswith(_PREFIX)}
        plain = self.inputs(batch) if states else batch
        together = None if torch.is_grad_enabled() or states else self._by_groups(plain)
        if together is not None:
            return together
        apart = not self.shares or (torch.is_grad_enabled() and self.dense())
        shared = None if apart else self.shared_prefix()
        length = shared.length(plain) if shared is not None else 0
        if shared is not None and length:
            return shared(plain, states, length)
        return self.logits(plain, states)

    def _by_groups(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Logits of a batch whose rows begin alike in groups; `None` where they do not, or it saves too
        little."""
        groups = self.kind.encoder.begin_alike(batch) if self.groups and self.kind is not None else None
        if groups is None or self._groups_hold is False:
            return None
        shared = SharedInGroups(self.model, self.logits, 0)
        lengths = shared.lengths(batch, groups)
        if lengths is None:
            return None
        try:
            found = shared.run(batch, groups, lengths)
        except Unshareable:
            self._groups_hold = False
            return None
        if self._groups_hold is None:
            plain = self.logits(batch, {})
            same = found.shape == plain.shape and alike(found, plain, cast(PreTrainedModel, self.model))
            self._groups_hold = same
            return plain
        return found

    def whole(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of a batch that is not as its split has it, with every layer and position computed: of what
        its kind of task reads, as ever."""
        with nullcontext() if self.kind is None else self.kind.head.reading(self.model, batch):
            return logits_of(self.model, batch, self.kind)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `batches` without what is stored of it."""
        return {k: v for k, v in batch.items() if not k.startswith(_PREFIX)}

    def shared_prefix(self) -> SharedPrefix:
        """Runs batches in two parts, the first of them once for all rows."""
        depths = self.trunk.depths.values() if self.trunk is not None else ()
        return SharedPrefix(self.model, self.logits, max(depths, default=0))

    def logits(self, batch: Mapping[str, Any], states: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch, given states of untouched layers (B, L, width) by stack."""
        found = None if self.kind is None else self.kind.head.reads(batch)
        if self.ends and found is not None:
            batch, states, found = _ended(batch, states, found)
        trunk: AbstractContextManager[Any] = nullcontext()
        if states and self.trunk is not None:
            trunk = self.trunk.laid(states)
        rows: AbstractContextManager[Any] = nullcontext()
        if self.rows is not None and not (self.rows.reader == "last" and _ends_in_padding(self.model, batch)):
            rows = self.rows.of(mask_of(batch), found)
        read: AbstractContextManager[Any] = nullcontext()
        if self.kind is not None:
            read = self.kind.head.reading(self.model, batch)
        with trunk, rows, read:
            return logits_of(self.model, batch, self.kind)


def _ends_in_padding(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether some text holds the padding token itself, as where the end token pads. Heads of transformers
    read the last token that is another one, wherever the mask ends."""
    padding = cast(PreTrainedModel, model).config.get_text_config().pad_token_id
    ids = batch.get("input_ids")
    return padding is not None and ids is not None and bool(((ids == padding) & mask_of(batch).bool()).any())


_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def _ended(
    batch: Mapping[str, Any], states: Mapping[str, Tensor], read: Tensor
) -> tuple[Mapping[str, Any], Mapping[str, Tensor], Tensor]:
    """A batch, states and read positions (B, L) without the tokens behind the last that is read, on which
    nothing depends where each token sees those before it alone. Labels stay whole."""
    columns = read.any(dim=0).nonzero()
    spare = read.shape[1] - 1 - int(columns[-1]) if len(columns) else 0
    if not spare:  # or nothing is read, and keys and values are what is wanted
        return batch, states, read
    kept = {k: v[:, :-spare] if k in _TOKENS else v for k, v in batch.items()}
    return kept, {stack: state[:, :-spare] for stack, state in states.items()}, read[:, :-spare]


def shortest_forward(hybrid: Trainable, data: EncodedTask, plan: TrainingPlan, *, dropout: bool) -> Forward:
    """The way to train and score an attached hybrid that computes least, checked against the plain one.

    With the backbone's dropout on, nothing is left out: its draws belong to the training. What the task's
    kind rules out is not tried (`Head.pooled`, `Encoder.tokenwise_trunk`), and what does not reproduce
    the plain logits of two rows is not used.
    """
    kind = data.task.task_kind
    if plan.packing:
        return packed_forward(hybrid, data.train, kind)
    plain = Forward(hybrid.model, kind=kind)
    if dropout or not plan.shortcuts or not isinstance(hybrid, Hybrid) or not len(data.train):
        return plain
    # The draws of calibration and training go on from where they are.
    with generators_kept(_device_of(hybrid)):
        found = _Shortcuts(hybrid, data.train, kind).forward()
    if found.trunk is not None:
        found.trunk.rows_at_once = plan.micro_batch
    return found


def packed_forward(hybrid: Trainable, split: EncodedSplit, kind: TaskKind) -> Forward:
    """The plain way, with several texts in one row.

    Raises:
        UsageError: something has to tell texts apart by rows (see `check_packing`), or the model gives two of
            the split's texts other logits where they share a row.
    """
    model = hybrid.model
    check_packing(hybrid, model, kind)
    found, plain = Forward(model, kind=kind), Forward(model, kind=kind)
    order = np.argsort(split.lengths, kind="stable")
    batch = split.collate(np.array([order[0], order[-1]] * 2), device=_device_of(hybrid))
    # Two rows of two texts: what is right in one alone may be wrong in several.
    found.packs = Packing(int(split.lengths[order[0]] + split.lengths[order[-1]]))
    away = moved(hybrid) if isinstance(hybrid, Hybrid) else nullcontext()
    with generators_kept(_device_of(hybrid)), torch.no_grad(), evaluation_mode(model), away:
        if not alike(found(batch).float(), plain(batch).float(), cast(PreTrainedModel, model)):
            raise UsageError(
                f"{type(model).__name__} gives texts that share a row other logits than texts with a row of "
                "their own; train it without packing."
            )
    found.packs = Packing(split.max_length)
    return found


def _device_of(hybrid: Trainable) -> torch.device:
    return next(hybrid.model.parameters()).device


def sharing_forward(hybrid: Trainable, split: EncodedSplit, kind: TaskKind) -> Forward:
    """The plain way, but for what the rows of a batch begin with, which is computed once where that gives the
    plain logits of two rows of the split."""
    found = Forward(hybrid.model, kind=kind)
    if isinstance(hybrid, Hybrid) and kind.head.causal and len(split):
        with generators_kept(_device_of(hybrid)):
            shortcuts = _Shortcuts(hybrid, split, kind)
            shortcuts.shorten(found, ends=False, shares=True)
            found.groups = shortcuts.may_share_in_groups()
    return found


_READERS: WeakKeyDictionary[nn.Module, Reader | None] = WeakKeyDictionary()
_CHECKED: WeakKeyDictionary[nn.Module, dict[Any, tuple[bool, dict[str, int]]]] = WeakKeyDictionary()


class _Shortcuts:
    """Finds what can be left out for one hybrid, and tries it on two rows."""

    def __init__(self, hybrid: Hybrid, split: EncodedSplit, kind: TaskKind) -> None:
        self.hybrid, self.kind = hybrid, kind
        self.model: PreTrainedModel = hybrid.model
        self.layout = hybrid.injection.layout
        self.device = _device_of(hybrid)
        lengths = split.lengths
        # Of rows that are all as long, two that differ.
        pair = np.array([int(lengths.argmin()), len(lengths) - 1 - int(lengths[::-1].argmax())])
        self.batch = split.collate(pair, device=self.device)
        self._positions = lambda stack: int(split.layout(pair, self.device, stack)[1].shape[1])
        read = kind.head.reads(self.batch)
        self.read = read if read is not None and bool(read.any()) else None
        self._plain: Tensor | None = None

    def forward(self) -> Forward:
        # Of several processes each runs the layers as often, whichever rows are stored or begin alike.
        alone = team_of(self.model).size == 1
        trunk = self._trunk() if self.kind.encoder.tokenwise_trunk and alone else None
        whole = trunk is not None and any(
            len(level.layers) == len(self.layout.stacks[-1].layers)
            for level in trunk.levels
            if level.stack == self.layout.stacks[-1].map.name
        )
        rows = None if whole else self._rows()
        injection, revision = self.hybrid.injection, self.hybrid.injection.revision
        # A method that moves its mask while it trains may reach further down than it did.
        untouched = lambda: injection.revision == revision  # noqa: E731
        found = Forward(self.model, trunk=trunk, rows=rows, untouched=untouched, kind=self.kind)
        if self.kind.head.causal:
            self.shorten(found, ends=self._may_end(), shares=alone)
            found.groups = alone and self.may_share_in_groups()
        found.dense = self._dense
        return found

    def _dense(self) -> bool:
        trained = sum(p.numel() for p in self.hybrid.root.parameters() if p.requires_grad)
        return trained > _DENSE * self.hybrid.graph.spec.parameters

    def _logits(self) -> Tensor:
        return logits_of(self.model, self.batch, self.kind).float()

    def plain(self) -> Tensor:
        """Logits of the two rows; to be asked for before a shortcut is in place."""
        if self._plain is None:
            with evaluation_mode(self.model):
                self._plain = self._logits()
        return self._plain

    def _equal(self, logits: Tensor, plain: Tensor) -> bool:
        return alike(logits, plain, self.model)

    # The trunk
    # ------------------------------------------------------------------------------------------------

    def _trunk(self) -> Trunk | None:
        depths = trunk_depths(self.hybrid.injection)
        base = base_model_of(self.model)
        levels = [
            Level.of(base, stack, depths[stack.map.name])
            for stack in self.layout.stacks
            if depths[stack.map.name] > 0
        ]
        # A reentrant checkpoint gives no gradient where no input requires one, and stored states do not.
        if not levels or any(_reentrant(m) for m in self._checkpointed()):
            return None
        trunk = Trunk(self.model, levels, lambda batch: logits_of(self.model, batch, self.kind))
        key = ("trunk", tuple(sorted(trunk.depths.items())))
        sound, tuples = self._remembered(key, lambda: self._try_trunk(trunk))
        trunk.tuples.update(tuples)
        if not sound:
            return None
        trunk.shares, _ = self._remembered(("front", *key), lambda: (self._try_front(trunk), {}))
        return trunk

    def _try_trunk(self, trunk: Trunk) -> tuple[bool, dict[str, int]]:
        with evaluation_mode(self.model):
            plain, states = self.plain(), trunk.compute(self.batch)
            if len(states) < len(trunk.levels):
                return False, {}
            # States are stored by the positions that the rows say.
            if any(found.shape[1] != self._positions(stack) for stack, found in states.items()):
                return False, {}
            with trunk.laid(states):
                return self._equal(self._logits(), plain), dict(trunk.tuples)

    def _try_front(self, trunk: Trunk) -> bool:
        """Whether what the two rows begin with can be computed once below the hybrid."""
        if not self.kind.head.causal or len(self.layout.stacks) > 1 or self._checkpointed():
            return False
        length = SharedPrefix.common(self.batch)
        if not length:
            return False
        with evaluation_mode(self.model):
            plain = trunk.compute(self.batch)
            try:
                found = trunk.front(self.batch, length).with_rest(self.batch)
            except Unshareable:
                return False
            return all(self._equal(found[stack], states) for stack, states in plain.items())

    def _remembered(
        self, key: Any, attempt: Callable[[], tuple[bool, dict[str, int]]]
    ) -> tuple[bool, dict[str, int]]:
        known = _CHECKED.setdefault(self.model, {})
        if key not in known:
            known[key] = attempt()
        return known[key]

    # The last layer
    # ------------------------------------------------------------------------------------------------

    def _rows(self) -> ReadRows | None:
        stack = self.layout.stacks[-1]
        graph = self.hybrid.graph
        # Recomputation runs the layer again when the batch's positions are no longer at hand.
        if not last_layer_is_rowwise(graph, stack) or self._checkpointed():
            return None
        reader = self._reader(stack) if self.kind.head.pooled else None
        if reader is None and (self.read is None or some_of(self.read) is None):
            return None
        slots = self._slots(stack, layers=True)
        rows = ReadRows(base_model_of(self.model), stack, reader, partial(self._slots, stack, layers=True))
        kinds = sorted({e.method.name for e in graph.entries.values()})
        key = ("rows", reader, bool(slots), all(slot.in_front for slot in slots), *kinds)
        sound, _ = self._remembered(key, lambda: (self._try_rows(rows), {}))
        return rows if sound else None

    def _reader(self, stack: StackPlaces) -> Reader | None:
        """Which position of each row the head reads; `None` where rows of one token do not tell."""
        if int(mask_of(self.batch).sum(dim=1).max()) < 2:
            return None
        if self.model not in _READERS:
            layer = base_model_of(self.model).get_submodule(stack.layers[-1])
            with evaluation_mode(self.model):
                mask = mask_of(self.batch)
                _READERS[self.model] = reader_of(layer, self._logits, mask, self._slots(stack, layers=False))
        return _READERS[self.model]

    def _try_rows(self, rows: ReadRows) -> bool:
        plain, read = self.plain(), self.read
        with evaluation_mode(self.model), rows.of(mask_of(self.batch), read):
            found = self._logits()
        if read is None or plain.ndim < 3:  # the kind has taken what is read already
            return self._equal(found, plain)
        return self._equal(found[read], plain[read])

    # What rows begin and end with
    # ------------------------------------------------------------------------------------------------

    def shorten(self, forward: Forward, *, ends: bool, shares: bool) -> None:
        """Let a forward leave out what rows end with, and compute once what they begin with, as far as that
        is asked for and gives the logits of the two rows.

        Tried with the modules in training, so that draws of their own (dropout) show, and away from their
        start, where many change nothing. In 16 bits draws do not show beside rounding: what draws shares
        nothing there.
        """
        length = self._begins_alike(forward) if shares else 0
        if not (ends or length):
            return
        with torch.no_grad(), training_mode(self.model, self.hybrid.modules.values(), dropout=False):
            states = {} if forward.trunk is None else forward.trunk.compute(self.batch)

            def whole() -> Tensor:
                return forward.logits(self.batch, states)

            if length and is_rough(self.model) and draws(whole, _device_of(self.hybrid)):
                length = 0
            tried = dict.fromkeys(((ends, bool(length)), (ends, False), (False, bool(length))))
            tried.pop((False, False), None)
            with moved(self.hybrid):
                plain = drawn(whole)
                for forward.ends, forward.shares in tried:
                    with suppress(Unshareable):
                        if self._equal(drawn(lambda: self._shorter(forward, states, length)), plain):
                            return
        forward.ends = forward.shares = False

    def _shorter(self, forward: Forward, states: Mapping[str, Tensor], length: int) -> Tensor:
        if forward.shares:
            return forward.shared_prefix()(self.batch, states, length)
        return forward.logits(self.batch, states)

    def _begins_alike(self, forward: Forward) -> int:
        """How many tokens the two rows begin with that may be computed once."""
        return forward.shared_prefix().common(self.batch) if self.may_share() else 0

    def may_share_in_groups(self) -> bool:
        """Whether what the rows of groups begin with may be: not where a window counts places in the cache,
        some of which would hold no token."""
        stack = self.hybrid.graph.spec.stack(self.layout.stacks[-1].map.name)
        return self.may_share() and stack.window is None

    def may_share(self) -> bool:
        """Whether what rows begin with may be computed once."""
        stack = self.layout.stacks[-1]
        single = len(self.layout.stacks) == 1 and not self._checkpointed()
        return single and may_share(self.hybrid.graph, stack)

    def _may_end(self) -> bool:
        """Whether the tokens behind the last one that is read might be left out."""
        stack = self.layout.stacks[-1]
        if len(self.layout.stacks) > 1 or self.read is None or self._checkpointed():
            return False
        if not is_by_position(self.hybrid.graph, stack):
            return False
        # Rows that stand before the end of each text would move.
        return all(slot.in_front for slot in self._slots(stack, layers=True))

    def _checkpointed(self) -> list[nn.Module]:
        return [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", False)]

    def _slots(self, stack: StackPlaces, *, layers: bool) -> list[Slot]:
        """The rows that prompts have in the last layer of a stack, or, without those that enter at `layers`,
        behind it."""
        modules: Any = self.hybrid.modules
        return [
            slot
            for entry in self.hybrid.graph.entries.values()
            for site in entry.sites
            if "prompt" in entry.ways and site.stack == stack.map.name and (layers or site.layer is None)
            for slot in modules[entry.name].slots(site)
            if not slot.renews
        ]


def _reentrant(module: nn.Module) -> bool:
    """Whether a module's gradient checkpointing is of the reentrant kind (torch's own default)."""
    function: Any = getattr(module, "_gradient_checkpointing_func", None)
    return function is not None and bool(getattr(function, "keywords", {}).get("use_reentrant", True))
