"""Several hybrids on one model, each on rows of its own.

The rows of a batch are divided into consecutive slices, one for each hybrid: its **lane**. What a hybrid does
at a module is what it does alone (`ModuleHooks`, `WeightHooks`, `AttentionHooks`), on the slice of the
module's input and output; here the slices are cut and put together again, once for all hybrids of a module.
So a hybrid alone on a model pays nothing for it.

Which rows are whose is a `Split`, made anew for every forward and laid down beside the contexts (see
`autopeft.injection.frames`).

Tensors that a weight method alters cannot be swapped in for the whole batch: the module's forward runs once
with the backbone's own, and for the slice of each such hybrid again with its tensors. Prefixes of different
length are filled up on the left with columns that the mask hides, features on scores with zeros.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from autopeft.errors import CompositionError, UsageError
from autopeft.injection.attention import AttentionHooks, Prefix
from autopeft.injection.dispatch import ModuleHooks, first_input, with_input
from autopeft.injection.frames import PREFIX, SCORES, Kept, Split, frames
from autopeft.injection.scores import Features, Scores, scores_of
from autopeft.injection.sequence import RootHooks, count_from_text, cut_output, named_inputs, past_length
from autopeft.injection.threads import Forwards
from autopeft.injection.weights import WeightHooks
from autopeft.method import Reserved

__all__ = [
    "BiasHooks",
    "Lane",
    "LaneAttentionHooks",
    "LaneHooks",
    "LayerHooks",
    "ModelHooks",
    "MultiRootHooks",
    "StackBias",
    "split_rows",
]

ROWS = "rows"  # keyword argument of a forward: how many rows each hybrid has
_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids", "decoder_inputs_embeds")
_FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps what it checkpoints a layer with


def _split_of(token: int, module: nn.Module, tensor: Tensor) -> Split:
    """How this forward's rows are split, checked against a tensor (batch, …) that a module handles.

    Raises:
        CompositionError: no forward of the model is under way, or the tensor has other rows than its batch.
    """
    split = frames.splits.get(token)
    if split is None:
        raise CompositionError(
            f"{type(module).__name__} was called outside a forward of the model, so that it is not known "
            "which rows belong to which hybrid; call the model, or detach the hybrids."
        )
    if tensor.shape[0] != split.total:
        raise CompositionError(
            f"{type(module).__name__} handles {tuple(tensor.shape)} where the batch has {split.total} rows, "
            "in chunks or flattened, so that the rows of the hybrids cannot be told apart; attach them one "
            "at a time."
        )
    return split


@contextmanager
def _inside(token: int, split: Split, index: int) -> Iterator[None]:
    """Give all rows to one hybrid while it acts: it may call modules of the backbone (an adapter the norm
    behind it), which have hooks of all hybrids."""
    frames.splits[token] = Split.alone(index, len(split.sizes), split.sizes[index])
    try:
        yield
    finally:
        frames.splits[token] = split


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


@dataclass
class Lane:
    """The hooks of one hybrid at one module."""

    sites: ModuleHooks = field(default_factory=ModuleHooks)
    weights: WeightHooks | None = None


class LaneHooks:
    """The hooks of one backbone module for all hybrids of a model.

    Args:
        token: the one that the hybrids have in common.
        count: how many hybrids.
        rowless: the module's call knows of no batch (a table of relative positions).
    """

    def __init__(self, token: int, count: int, *, rowless: bool = False) -> None:
        self.token, self.rowless = token, rowless
        self.lanes = [Lane() for _ in range(count)]

    @property
    def enters(self) -> bool:
        """Whether a hybrid acts on the input."""
        return any(lane.sites.entries or lane.sites.residuals for lane in self.lanes)

    @property
    def leaves(self) -> bool:
        """Whether a hybrid acts on the output, or on the parameters behind it."""
        return any(lane.sites.exits or lane.weights is not None for lane in self.lanes)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = first_input(args, kwargs)
        split = _split_of(self.token, module, x)
        active = split.active()
        old = x.split(split.sizes)
        new: dict[int, Tensor] = {}
        for i in active:
            with _inside(self.token, split, i):
                new[i] = self.lanes[i].sites.enter(old[i])
        if all(new[i] is old[i] for i in active):
            return args, kwargs
        return with_input(args, kwargs, _joined([new[i] for i in active]))

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        y: Tensor = output[0] if isinstance(output, tuple) else output
        if not isinstance(y, Tensor):
            raise _rowless(module)
        laid = frames.splits.get(self.token)
        shared = laid is not None and y.shape[0] == 1 != laid.total  # one row for all (position embeddings)
        split = frames.splits[self.token] if shared else _split_of(self.token, module, y)
        active = split.active()
        old = [y] * len(split.sizes) if shared else list(y.split(split.sizes))
        new: dict[int, Tensor] = {}
        patched = [i for i in active if self.lanes[i].weights is not None]
        if patched:
            flat = isinstance(module, nn.Embedding) and bool(args) and args[0].ndim < 2
            if self.rowless or flat or isinstance(output, tuple):  # refuse rather than cut where no rows are
                raise _rowless(module)
            sliced = _slices(args, kwargs, split, shared)
            for i in patched:
                weights = cast(WeightHooks, self.lanes[i].weights)
                with _inside(self.token, split, i), weights.swapped(module):
                    new[i] = module.forward(*sliced[i][0], **sliced[i][1])
        exits = [dispatcher for i in active for dispatcher in self.lanes[i].sites.exits]
        reads = any(dispatcher.outputs and not dispatcher.spans for dispatcher in exits)
        inputs = first_input(args, kwargs).split(split.sizes) if reads else [None] * len(split.sizes)
        for i in active:
            if not self.lanes[i].sites.exits:
                continue
            with _inside(self.token, split, i):
                new[i] = self.lanes[i].sites.leave(inputs[i], new.get(i, old[i]))
        if all(new.get(i, old[i]) is old[i] for i in active):
            return output
        pieces = [new.get(i, old[i]) for i in active]
        if shared:
            pieces = [p.expand(split.sizes[i], *p.shape[1:]) for i, p in zip(active, pieces, strict=True)]
        joined = _joined(pieces)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined


def _rowless(module: nn.Module) -> CompositionError:
    return CompositionError(
        f"A hybrid alters parameters of {type(module).__name__}, whose call has no rows of a batch that "
        "could be divided among hybrids; attach that hybrid by itself."
    )


def _slices(
    args: tuple[Any, ...], kwargs: dict[str, Any], split: Split, shared: bool
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """A module's arguments for each lane: tensors of the batch cut to its rows, all else as it is."""
    count = len(split.sizes)

    def cut(value: Any) -> Sequence[Any]:
        of_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == split.total
        return value.split(split.sizes) if of_batch and not shared else [value] * count

    positional = [cut(value) for value in args]
    named = {name: cut(value) for name, value in kwargs.items()}
    return [(tuple(v[i] for v in positional), {n: v[i] for n, v in named.items()}) for i in range(count)]


@dataclass
class LaneAttentionHooks:
    """Hands an attention the prefixes of all hybrids of a model, filled up to the longest, and what they add
    to its scores, filled up to the widest."""

    token: int
    lanes: tuple[AttentionHooks, ...]

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = first_input(args, kwargs)
        split = _split_of(self.token, module, x)
        pieces = x.split(split.sizes)
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        scores: dict[int, Scores] = {}
        for i in split.active():
            lane = self.lanes[i]
            if lane.prefixes:
                with _inside(self.token, split, i):
                    pairs[i] = lane.key_values(pieces[i])
            if lane.terms:
                scores[i] = scores_of(lane.terms, lane.token, pieces[i])
        handed = dict(kwargs)
        if pairs:
            handed[PREFIX] = _side_by_side(pairs, split)
        if scores:
            handed[SCORES] = Scores(partial(self._features, scores, split))
        return args, handed

    def _features(self, scores: dict[int, Scores], split: Split, queries: int, keys: int) -> Features:
        """Features of the whole batch: (rows, queries or keys, widest) with zeros where a hybrid has none."""
        made: dict[int, Features] = {}
        for i, own in scores.items():
            with _inside(self.token, split, i):
                made[i] = own.make(queries, keys)
        widest = max(of_keys.shape[2] for _, of_keys in made.values())
        like = next(iter(made.values()))[0]
        of_queries, of_keys = [], []
        for i in split.active():
            q, k = made.get(i, (like.new_zeros(1, queries, 0), like.new_zeros(1, keys, 0)))
            of_queries.append(pad(q, (0, widest - q.shape[2])).expand(split.sizes[i], -1, -1))
            of_keys.append(pad(k, (0, widest - k.shape[2])).expand(split.sizes[i], -1, -1))
        return _joined(of_queries), _joined(of_keys)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        next(lane for lane in self.lanes if lane.prefixes or lane.terms).after(module, args, kwargs, output)


def _side_by_side(pairs: dict[int, tuple[Tensor, Tensor]], split: Split) -> Prefix:
    """One prefix for the whole batch: (rows, longest, width) with hidden columns on the left."""
    longest = max(keys.shape[1] for keys, _ in pairs.values())
    like = next(iter(pairs.values()))[0]
    keys, values, visible = [], [], []
    for i in split.active():
        rows = split.sizes[i]
        none = like.new_zeros(rows, 0, like.shape[2])
        k, v = pairs.get(i, (none, none))
        missing = longest - k.shape[1]
        keys.append(pad(k.expand(rows, -1, -1), (0, 0, missing, 0)))
        values.append(pad(v.expand(rows, -1, -1), (0, 0, missing, 0)))
        seen = torch.ones(rows, k.shape[1], dtype=torch.bool, device=like.device)
        visible.append(pad(seen, (missing, 0), value=False))
    even = len(pairs) == len(visible) and len({k.shape[1] for k, _ in pairs.values()}) == 1
    return Prefix(_joined(keys), _joined(values), None if even else _joined(visible))


@dataclass
class BiasHooks:
    """Hands T5's attention a position bias for each row, where one of several hybrids alters its table.

    The model makes one bias, (1, heads, queries, keys), for all rows and layers, by a lookup that knows of no
    batch. A bias that is handed over is used and passed on instead.
    """

    token: int
    weights: Sequence[WeightHooks | None]

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is an attention that makes its bias in the way that this class knows."""
        made = hasattr(module, "compute_bias") and hasattr(module, "relative_attention_bias")
        return made and "position_bias" in inspect.signature(module.forward).parameters

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get("position_bias") is not None:
            return args, kwargs
        x = first_input(args, kwargs)
        split = _split_of(self.token, module, x)
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        attention = cast(Any, module)
        past = 0 if cache is None else cache.get_seq_length(attention.layer_idx)
        plain = partial(attention.compute_bias, x.shape[1], x.shape[1] + past, x.device, past)
        biases = []
        for i in split.active():
            weights = self.weights[i]
            if weights is None:
                bias = plain()
            else:
                with weights.swapped(attention.relative_attention_bias):
                    bias = plain()
            biases.append(bias.expand(split.sizes[i], -1, -1, -1))
        return args, {**kwargs, "position_bias": _joined(biases)}


class StackBias:
    """Makes MPNet's position bias for each row, where one of several hybrids alters its table.

    The stack makes one bias, (batch, heads, queries, keys), for all of its layers by a method; while this is
    on the module, it stands in that method's place.
    """

    METHOD = "compute_position_bias"

    def __init__(self, token: int, module: nn.Module, weights: Sequence[WeightHooks | None]) -> None:
        self.token, self.module, self.weights = token, module, tuple(weights)
        module.__dict__[self.METHOD] = self

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether a module is a stack that makes its bias in the way that this class knows."""
        return hasattr(type(module), cls.METHOD) and hasattr(module, "relative_attention_bias")

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        module = cast(Any, self.module)
        split = _split_of(self.token, module, x)
        pieces, biases = x.split(split.sizes), []
        for i in split.active():
            plain = partial(getattr(type(module), self.METHOD), module, pieces[i], *args, **kwargs)
            weights = self.weights[i]
            if weights is None:
                biases.append(plain())
            else:
                with weights.swapped(module.relative_attention_bias):
                    biases.append(plain())
        return _joined(biases)

    def remove(self) -> None:
        """Give the module its own method again."""
        self.module.__dict__.pop(self.METHOD, None)


@dataclass
class Checkpointed:
    """A checkpointing function that lays down what its forward had laid down before the layer runs again."""

    function: Callable[..., Any]
    kept: Kept

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.function(partial(self._run, layer), *args, **kwargs)

    def _run(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frames.lay(self.kept)
        return layer(*args, **kwargs)


@dataclass
class LayerHooks:
    """Keeps split and contexts of a forward with the checkpoint of a layer.

    Recomputation runs the layer's forward and neither its hooks nor the root's, and starts with modules that
    see no keyword arguments (a norm in front of the attention), while other forwards may have begun since.

    Attributes:
        token: the hybrid's, or the one that several hybrids have in common.
        hybrids: the token of each hybrid.
    """

    token: int
    hybrids: tuple[int, ...]

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        function = module.__dict__.get(_FUNCTION)
        if function is not None and module.training and torch.is_grad_enabled():
            module.__dict__[_FUNCTION] = Checkpointed(function, frames.keep(self.token, self.hybrids))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        function = module.__dict__.get(_FUNCTION)
        if isinstance(function, Checkpointed):
            module.__dict__[_FUNCTION] = function.function


def split_rows(total: int, count: int, sizes: Sequence[int] | None = None) -> Split:
    """How `total` rows are divided among `count` hybrids: equally, or by `sizes`.

    Raises:
        UsageError: they cannot be divided equally, or the sizes do not fit.
    """
    if sizes is None:
        if total % count or not total:
            raise UsageError(
                f"{total} rows cannot be divided equally among {count} hybrids; give a multiple of {count} "
                f"rows, or {ROWS}=(…) with how many each hybrid has."
            )
        return Split((total // count,) * count)
    given = tuple(int(n) for n in sizes)
    if len(given) != count or any(n < 0 for n in given) or sum(given) != total or not total:
        raise UsageError(
            f"{ROWS}={given} does not divide {total} rows among {count} hybrids; give {count} numbers, none "
            f"below 0, that add up to {total}."
        )
    return Split(given)


def _split(token: int, count: int, inputs: dict[str, Any]) -> Split:
    """The split of a forward with these named inputs; takes `rows` out of them."""
    sizes, total = inputs.pop(ROWS, None), _rows_of(inputs)
    alone = frames.alone.get(token)
    if sizes is None and alone is not None:
        return Split.alone(alone, count, total)
    return split_rows(total, count, sizes)


def _rows_of(inputs: Mapping[str, Any]) -> int:
    """The batch size of a forward with these named inputs."""
    tensors = (inputs.get(name) for name in (*_INPUTS, *inputs))
    return next((int(t.shape[0]) for t in tensors if isinstance(t, Tensor) and t.ndim), 0)


@dataclass
class ModelHooks:
    """Hooks on the model, task head included: they settle which rows are whose for all that lies inside.

    Attributes:
        forwards: counts the threads that are inside.
        alone: whether one thread may be at a time: weights are swapped for one hybrid after the other.
    """

    token: int
    count: int
    forwards: Forwards
    alone: bool

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.alone:
            self.forwards.enter_alone()
        else:
            self.forwards.enter()
        inputs = named_inputs(inspect.signature(module.forward), args, kwargs)
        frames.splits[self.token] = _split(self.token, self.count, inputs)
        frames.open.add(self.token)
        return args, {name: value for name, value in kwargs.items() if name != ROWS}

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the split, also after an exception."""
        self.forwards.leave()
        frames.open.discard(self.token)
        frames.splits.pop(self.token, None)


class MultiRootHooks:
    """Hooks on a stack's root: what `RootHooks` does for one hybrid, for each on its own rows.

    Where prompts differ in length, a shorter one leaves its place to padding behind the text, which the mask
    hides; positions count on from each hybrid's own prompt.

    Args:
        token: the one that the hybrids have in common.
        lanes: each hybrid's hooks on this root.
    """

    def __init__(self, token: int, lanes: Sequence[RootHooks]) -> None:
        self.token = token
        self.sources = tuple(lanes)
        self.lanes = tuple(replace(lane, source=None) for lane in lanes)
        self.stack, self.keep = lanes[0].stack.name, lanes[0].keep
        self.text = lanes[0].spec.modality == "text"

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        signature = inspect.signature(module.forward)
        inputs = named_inputs(signature, args, kwargs)
        if self.token not in frames.open:  # called by itself, as `generate` does with an encoder
            split = _split(self.token, len(self.lanes), inputs)
        else:
            inputs.pop(ROWS, None)
            split, total = frames.splits[self.token], _rows_of(inputs)
            if total != split.total:
                raise CompositionError(
                    f"The model was called with {split.total} rows and calls its backbone with {total}, so "
                    "that the rows of the hybrids cannot be told apart; attach them one at a time."
                )
        if any(lane.leads(module) for lane in self.lanes):
            count_from_text(module, signature.parameters, inputs)
        frames.splits[self.token] = split
        active = split.active()
        rows = {i: self.lanes[i].rows for i in active}
        widest = max(rows.values())
        if widest and self.text:
            self._prepare(inputs, rows, split.total)
        parts: dict[int, dict[str, Any]] = {i: {} for i in active}  # each active hybrid's inputs
        for name, value in inputs.items():
            of_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == split.total
            pieces = value.split(split.sizes) if of_batch else None
            for i, part in parts.items():
                part[name] = value if pieces is None else pieces[i]
        self._pad_sources(inputs, parts)
        before = {i: dict(part) for i, part in parts.items()}
        for i, part in parts.items():
            context = self.lanes[i].enter(module, part)
            if rows[i] < widest and self.text and context.mask is not None:
                context = replace(context, mask=pad(context.mask, (0, widest - rows[i])))
                frames.contexts[(context.hybrid, self.stack)] = context
        # One input for the whole batch again: as it came where no hybrid changed it, else padded with zeros
        # (any id will do where the mask hides it).
        merged = {}
        for name in parts[active[0]]:
            if all(parts[i].get(name) is before[i].get(name) for i in parts):
                merged[name] = inputs[name]
                continue
            values: list[Tensor] = [part[name] for part in parts.values()]
            longest = max(value.shape[1] for value in values)
            merged[name] = _joined(
                [pad(v, (*[0, 0] * (v.ndim - 2), 0, longest - v.shape[1])) for v in values]
            )
        return (), merged

    def _prepare(self, inputs: dict[str, Any], rows: Mapping[int, int], total: int) -> None:
        """Give every row positions of its own, and a mask where prompts differ in length."""
        positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
        if positions is not None and positions.ndim == 2:
            inputs["position_ids"] = positions.expand(total, -1)
        if len(set(rows.values())) == 1:
            return
        if past_length(inputs):
            raise CompositionError(
                f"Prompts of {sorted(set(rows.values()))} rows leave padding inside the sequence, which a "
                "decoding step with a cache does not know of; generate with use_cache=False, or with one "
                "hybrid at a time (`alone`)."
            )
        if mask is None:
            ids = inputs.get("input_ids")
            shaped = inputs.get("inputs_embeds") if ids is None else ids
            if shaped is not None:
                inputs["attention_mask"] = torch.ones(
                    shaped.shape[:2], dtype=torch.long, device=shaped.device
                )

    def _pad_sources(self, inputs: dict[str, Any], parts: dict[int, dict[str, Any]]) -> None:
        """Let a decoder's rows see what the encoder's prompts of their hybrid added, not its padding."""
        sources = {i: self.sources[i].source for i in parts}
        rows = {
            i: 0 if source is None else sum(slot.length for slot in source.reserving)
            for i, source in sources.items()
        }
        widest, states = max(rows.values()), inputs.get("encoder_hidden_states")
        mask = inputs.get("encoder_attention_mask")
        if not widest or states is None or (mask is None and len(set(rows.values())) == 1):
            return
        length = states.shape[1] - widest
        if mask is not None and mask.shape[1] != length:
            return
        for i, part in parts.items():
            seen = part.get("encoder_attention_mask")
            if seen is None:
                seen = torch.ones(part["encoder_hidden_states"].shape[0], length, device=states.device).long()
            part["encoder_attention_mask"] = pad(self.sources[i].source_mask(seen), (0, widest - rows[i]))
        inputs["encoder_attention_mask"] = torch.cat(
            [part["encoder_attention_mask"] for part in parts.values()]
        )

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return output if self.keep or not self._reserved() else cut_output(output, self._cut)

    def pooled(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Drops the reserved rows before a pooler reads the first one."""
        return (self._cut(args[0]), *args[1:]) if self._reserved() else None

    def _reserved(self) -> dict[int, Reserved]:
        """The rows that each active hybrid has reserved in this forward; nothing where none has."""
        active = frames.splits[self.token].active()
        rows = {i: frames.context(self.lanes[i].token, self.stack).reserved for i in active}
        return rows if any(reserved.count for reserved in rows.values()) else {}

    def _cut(self, states: Tensor) -> Tensor:
        pieces = states.split(frames.splits[self.token].sizes)
        return torch.cat([reserved.text(pieces[i]) for i, reserved in self._reserved().items()])

    def cleanup(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget contexts, and the split where this root was called by itself; also after an exception."""
        for lane in self.lanes:
            frames.contexts.pop((lane.token, self.stack), None)
        if self.token not in frames.open:
            frames.splits.pop(self.token, None)
