"""Logits by the shortest way: untouched layers from the store, the last layer for what is read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import StackPlaces, base_model_of
from autopeft.devices import generator_state, generators_kept
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid
from autopeft.injection.depth import trunk_depths
from autopeft.injection.rows import Reader, ReadRows, last_layer_is_rowwise, reader_of, some_of
from autopeft.method import Slot
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.kinds import TaskKind
from autopeft.tasks.tokens import mask_of
from autopeft.training.contexts import evaluation_mode, training_mode
from autopeft.training.contracts import Trainable
from autopeft.training.distributed import team_of
from autopeft.training.losses import logits_of
from autopeft.training.packing import Packing, check_packing
from autopeft.training.plan import TrainingPlan
from autopeft.training.shared_prefix import (
    SharedInGroups,
    SharedPrefix,
    Unshareable,
    is_by_position,
    may_share,
)
from autopeft.training.trunk import Level, Trunk

__all__ = ["Forward", "alike", "packed_forward", "sharing_forward", "shortest_forward"]

_PREFIX = "trunk_"
_DENSE = 0.5  # of the backbone's parameters


@dataclass(kw_only=True, eq=False)
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
        groups_hold: whether that batch had the same.
        packs: lays several texts in one row; everything else is then computed.
        kind: of task, which takes the logits from the model's output; `None` for its `logits`.
        untouched: whether the trunk's layers still are; asked before each batch.
        dense: whether about as much trains as the backbone has; asked before each batch. Its weights are then
            made anew in each forward and kept for the backward, and two forwards would keep them twice.
    """

    model: nn.Module = field(kw_only=False)
    trunk: Trunk | None = None
    rows: ReadRows | None = None
    untouched: Callable[[], bool] = lambda: True
    kind: TaskKind | None = None
    shares: bool = False
    dense: Callable[[], bool] = lambda: False
    ends: bool = False
    groups: bool = False
    groups_hold: bool = False
    packs: Packing | None = None

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

        # What the rows of a group begin with. The first such batch is compared with the plain forward.
        if self.groups and self.kind is not None and not (states or torch.is_grad_enabled()):
            groups = self.kind.encoder.begin_alike(plain)
            grouped = SharedInGroups(self.model, self.logits, 0)
            lengths = None if groups is None else grouped.lengths(plain, groups)
            if groups is not None and lengths is not None:
                try:
                    found = grouped.run(plain, groups, lengths)
                except Unshareable:
                    self.groups = False
                else:
                    if self.groups_hold:
                        return found
                    logits, model = self.logits(plain, {}), cast(PreTrainedModel, self.model)
                    self.groups_hold = found.shape == logits.shape and alike(found, logits, model)
                    self.groups = self.groups_hold
                    return logits

        # What all rows begin with.
        if self.shares and not (torch.is_grad_enabled() and self.dense()):
            shared = self.shared_prefix()
            length = shared.length(plain)
            if length:
                return shared(plain, states, length)
        return self.logits(plain, states)

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
    injection, revision = hybrid.injection, hybrid.injection.revision
    # The draws of calibration and training go on from where they are.
    with generators_kept(next(hybrid.model.parameters()).device):
        pair = _two_rows(hybrid, data.train, kind)
        # Of several processes each runs the layers as often, whichever rows are stored or begin alike.
        alone = team_of(hybrid.model).size == 1
        found = Forward(hybrid.model, kind=kind)
        if kind.encoder.tokenwise_trunk and alone:
            found.trunk = _trunk(pair)
        last = injection.layout.stacks[-1]
        answered = 0 if found.trunk is None else found.trunk.depths.get(last.map.name, 0)
        if answered < len(last.layers):
            found.rows = _read_rows(pair)
        if kind.head.causal:
            _leave_out(pair, found, ends=True, shares=alone)
    # A method that moves its mask while it trains may reach further down than it did.
    found.untouched = lambda: injection.revision == revision
    found.dense = partial(_is_dense, hybrid)
    if found.trunk is not None:
        found.trunk.rows_at_once = plan.micro_batch
    return found


def packed_forward(hybrid: Trainable, split: EncodedSplit, kind: TaskKind) -> Forward:
    """The plain way, with several texts in one row.

    Raises:
        UsageError: something has to tell texts apart by rows (see `check_packing`), or the model gives two of
            the split's texts other logits where they share a row.
    """
    model, device = hybrid.model, next(hybrid.model.parameters()).device
    check_packing(hybrid, model, kind)
    found, plain = Forward(model, kind=kind), Forward(model, kind=kind)
    order = np.argsort(split.lengths, kind="stable")
    batch = split.collate(np.array([order[0], order[-1]] * 2), device=device)
    # Two rows of two texts: what is right in one alone may be wrong in several.
    found.packs = Packing(int(split.lengths[order[0]] + split.lengths[order[-1]]))
    away = moved(hybrid) if isinstance(hybrid, Hybrid) else nullcontext()
    with generators_kept(device), torch.no_grad(), evaluation_mode(model), away:
        if not alike(found(batch).float(), plain(batch).float(), cast(PreTrainedModel, model)):
            raise UsageError(
                f"{type(model).__name__} gives texts that share a row other logits than texts with a row of "
                "their own; train it without packing."
            )
    found.packs = Packing(split.max_length)
    return found


def sharing_forward(hybrid: Trainable, split: EncodedSplit, kind: TaskKind) -> Forward:
    """The plain way, but for what the rows of a batch begin with, which is computed once where that gives the
    plain logits of two rows of the split."""
    found = Forward(hybrid.model, kind=kind)
    if isinstance(hybrid, Hybrid) and kind.head.causal and len(split):
        with generators_kept(next(hybrid.model.parameters()).device):
            _leave_out(_two_rows(hybrid, split, kind), found, ends=False, shares=True)
    return found


# Trying what can be left out
# ----------------------------------------------------------------------------------------------------------

_READERS: WeakKeyDictionary[nn.Module, Reader | None] = WeakKeyDictionary()
_CHECKED: WeakKeyDictionary[nn.Module, dict[Any, tuple[bool, dict[str, int]]]] = WeakKeyDictionary()


class _TwoRows(NamedTuple):
    """An attached hybrid, and two rows of a split on which it is tried what can be left out.

    Attributes:
        rows: their places in the split.
        batch: the two as a batch.
        read: the positions (2, L) that are read, where some are and the kind of task says which.
        checkpointed: the modules that compute their activations again in the backward.
    """

    hybrid: Hybrid
    kind: TaskKind
    split: EncodedSplit
    rows: NDArray[np.int64]
    batch: dict[str, Tensor]
    read: Tensor | None
    checkpointed: list[nn.Module]


def _two_rows(hybrid: Hybrid, split: EncodedSplit, kind: TaskKind) -> _TwoRows:
    """The shortest row and the longest; of rows that are all as long, two that differ."""
    lengths, model = split.lengths, hybrid.model
    rows = np.array([int(lengths.argmin()), len(lengths) - 1 - int(lengths[::-1].argmax())])
    batch = split.collate(rows, device=next(model.parameters()).device)
    read = kind.head.reads(batch)
    if read is not None and not read.any():
        read = None
    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    return _TwoRows(hybrid, kind, split, rows, batch, read, checkpointed)


def _trunk(pair: _TwoRows) -> Trunk | None:
    """The layers that a hybrid leaves untouched, where their stored states give the plain logits."""
    hybrid, kind, batch = pair.hybrid, pair.kind, pair.batch
    model: PreTrainedModel = hybrid.model
    depths, base, stacks = (
        trunk_depths(hybrid.injection),
        base_model_of(model),
        hybrid.injection.layout.stacks,
    )
    levels = [Level.of(base, stack, depths[stack.map.name]) for stack in stacks if depths[stack.map.name] > 0]
    # A reentrant checkpoint gives no gradient where no input requires one, and stored states do not.
    if not levels or any(_reentrant(m) for m in pair.checkpointed):
        return None
    trunk = Trunk(model, levels, lambda batch: logits_of(model, batch, kind))
    known, key = _CHECKED.setdefault(model, {}), ("trunk", tuple(sorted(trunk.depths.items())))
    if key not in known:
        with evaluation_mode(model):
            plain, states = logits_of(model, batch, kind).float(), trunk.compute(batch)
            # States are stored by the positions that the rows say.
            sound = len(states) == len(levels) and all(
                found.shape[1] == pair.split.layout(pair.rows, stack)[1].shape[1]
                for stack, found in states.items()
            )
            if sound:
                with trunk.laid(states):
                    sound = alike(logits_of(model, batch, kind).float(), plain, model)
        known[key] = sound, dict(trunk.tuples)
    sound, tuples = known[key]
    if not sound:
        return None
    trunk.tuples.update(tuples)

    # What two rows begin with may be computed once below the hybrid too.
    front = ("front", *key)
    if front not in known:
        causal = kind.head.causal and len(stacks) == 1 and not pair.checkpointed
        length = SharedPrefix.common(batch) if causal else 0
        same = False
        if length:
            with evaluation_mode(model), suppress(Unshareable):
                whole, found = trunk.compute(batch), trunk.front(batch, length).with_rest(batch)
                same = all(alike(found[stack], states, model) for stack, states in whole.items())
        known[front] = same, {}
    trunk.shares, _ = known[front]
    return trunk


def _read_rows(pair: _TwoRows) -> ReadRows | None:
    """The last layer for the positions that are read alone, where that gives the plain logits."""
    hybrid, kind, batch, read = pair.hybrid, pair.kind, pair.batch, pair.read
    model: PreTrainedModel = hybrid.model
    stack, base, mask = hybrid.injection.layout.stacks[-1], base_model_of(model), mask_of(batch)
    # Recomputation runs the layer again when the batch's positions are no longer at hand.
    if not last_layer_is_rowwise(hybrid.graph, stack) or pair.checkpointed:
        return None
    reader = None
    if kind.head.pooled and int(mask.sum(dim=1).max()) > 1:  # rows of one token do not tell which is read
        if model not in _READERS:
            with evaluation_mode(model):
                _READERS[model] = reader_of(
                    base.get_submodule(stack.layers[-1]),
                    lambda: logits_of(model, batch, kind).float(),
                    mask,
                    _slots(hybrid, stack, layers=False),
                )
        reader = _READERS[model]
    if reader is None and (read is None or some_of(read) is None):
        return None
    slots = _slots(hybrid, stack, layers=True)
    rows = ReadRows(base, stack, reader, partial(_slots, hybrid, stack, layers=True))
    methods = sorted({e.method.name for e in hybrid.graph.entries.values()})
    known = _CHECKED.setdefault(model, {})
    key = ("rows", reader, bool(slots), all(slot.in_front for slot in slots), *methods)
    if key not in known:
        with evaluation_mode(model):
            plain = logits_of(model, batch, kind).float()
            with rows.of(mask, read):
                found = logits_of(model, batch, kind).float()
        if read is not None and plain.ndim > 2:  # else the kind has taken what is read already
            found, plain = found[read], plain[read]
        known[key] = alike(found, plain, model), {}
    return rows if known[key][0] else None


def _leave_out(pair: _TwoRows, forward: Forward, *, ends: bool, shares: bool) -> None:
    """Let a forward of a causal stack leave out what rows end with, and compute once what they begin with, as
    far as that is asked for and gives the logits of the two rows.

    Tried with the modules in training, so that draws of their own (dropout) show, and away from their start,
    where many change nothing. In 16 bits draws do not show beside rounding: what draws shares nothing there.
    """
    hybrid, batch, graph = pair.hybrid, pair.batch, pair.hybrid.graph
    model: PreTrainedModel = hybrid.model
    stacks = hybrid.injection.layout.stacks
    single = len(stacks) == 1 and not pair.checkpointed
    shares = shares and single and may_share(graph, stacks[-1])
    # A window counts places in the cache, of which some would hold no token of a group.
    forward.groups = shares and graph.spec.stack(stacks[-1].map.name).window is None
    length = forward.shared_prefix().common(batch) if shares else 0
    ends = ends and single and pair.read is not None and is_by_position(graph, stacks[-1])
    # Rows that stand before the end of each text would move.
    ends = ends and all(slot.in_front for slot in _slots(hybrid, stacks[-1], layers=True))
    if not (ends or length):
        return
    with torch.no_grad(), training_mode(model, hybrid.modules.values(), dropout=False):
        states = {} if forward.trunk is None else forward.trunk.compute(batch)
        whole = partial(forward.logits, batch, states)
        first = next(base_model_of(model).parameters())
        if length and first.dtype.itemsize < 4 and draws(whole, first.device):
            length = 0
        tried = dict.fromkeys(((ends, bool(length)), (ends, False), (False, bool(length))))
        tried.pop((False, False), None)
        with moved(hybrid):
            plain = drawn(whole)
            for forward.ends, forward.shares in tried:
                prefix = partial(forward.shared_prefix(), batch, states, length)
                with suppress(Unshareable):
                    if alike(drawn(prefix if forward.shares else whole), plain, model):
                        return
    forward.ends = forward.shares = False


def _is_dense(hybrid: Hybrid) -> bool:
    """Whether about as much trains as the backbone has."""
    trained = sum(p.numel() for p in hybrid.root.parameters() if p.requires_grad)
    return trained > _DENSE * hybrid.graph.spec.parameters


def _slots(hybrid: Hybrid, stack: StackPlaces, *, layers: bool) -> list[Slot]:
    """The rows that prompts have in the last layer of a stack, or, without those that enter at `layers`,
    behind it."""
    modules: Any = hybrid.modules
    last = len(stack.layers) - 1
    return [
        slot
        for entry in hybrid.graph.entries.values()
        for site in entry.sites
        if "prompt" in entry.ways and site.stack == stack.map.name and (layers or site.layer is None)
        for slot in modules[entry.name].slots(site)
        if not slot.renews and (not slot.leaves or site.layer == last)
    ]


def _reentrant(module: nn.Module) -> bool:
    """Whether a module's gradient checkpointing is of the reentrant kind (torch's own default)."""
    function: Any = getattr(module, "_gradient_checkpointing_func", None)
    return function is not None and bool(getattr(function, "keywords", {}).get("use_reentrant", True))


# Whether another way gives the same logits
# ----------------------------------------------------------------------------------------------------------

# Of the largest logit; the same arithmetic on other shapes rounds differently.
_TOLERANCE = 1e-5
_ROUGH_TOLERANCE = 5e-2  # of backbones in 16 bits
_STEP = 0.02


def alike(logits: Tensor, plain: Tensor, model: PreTrainedModel) -> bool:
    """Whether logits are the plain ones up to rounding; not where there are none."""
    if not plain.numel():
        return False
    size = next(base_model_of(model).parameters()).dtype.itemsize
    tolerance = _ROUGH_TOLERANCE if size < 4 else _TOLERANCE
    limit = tolerance * max(1.0, float(plain.abs().max()))
    return bool((logits - plain).abs().max() <= limit)


def drawn(logits: Callable[[], Tensor]) -> Tensor:
    """Logits in fp32, with draws from one seed."""
    torch.manual_seed(0)
    return logits().float()


def draws(logits: Callable[[], Tensor], device: torch.device) -> bool:
    """Whether something draws while logits are computed."""
    before = generator_state(device)
    logits()
    after = generator_state(device)
    pairs = zip(before, after, strict=True)
    return any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)


@contextmanager
def moved(hybrid: Hybrid) -> Iterator[None]:
    """Within, the hybrid's parameters are a small step from where they were; its buffers are kept too."""
    parameters = list(hybrid.root.parameters())
    before = [(t, t.detach().clone()) for t in (*parameters, *hybrid.root.buffers())]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter), alpha=_STEP)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
