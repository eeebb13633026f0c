"""Roots of a model that several hybrids share: which rows of a forward are whose, and what each adds to them.

What `RootHooks` does for one hybrid is done here for each on its own rows, and put together again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from autopeft.errors import CompositionError, UsageError
from autopeft.injection.frames import Split, frames
from autopeft.injection.sequence import RootHooks, count_from_text, cut_output, is_cached, named_inputs
from autopeft.injection.threads import Forwards
from autopeft.method import Context, Reserved

__all__ = ["ModelHooks", "MultiRootHooks", "split_rows"]

ROWS = "rows"  # keyword argument of a forward: how many rows each hybrid has
_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids", "decoder_inputs_embeds")


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
        split = self._split(inputs)
        if any(lane.leads(module) for lane in self.lanes):
            count_from_text(module, signature.parameters, inputs)
        frames.splits[self.token] = split
        active = split.active()
        rows = {i: self.lanes[i].rows for i in active}
        widest = max(rows.values())
        if widest and self.text:
            self._prepare(inputs, rows, split.total)
        parts = _parts(inputs, split)
        self._pad_sources(inputs, parts)
        before = {i: dict(part) for i, part in parts.items()}
        for i, part in parts.items():
            self.lanes[i].require_ids(module, part)
            context = self.lanes[i].enter(part)
            self._lay(i, context, widest - rows[i])
        return (), {name: self._merged(name, inputs, before, parts) for name in parts[active[0]]}

    def _split(self, inputs: dict[str, Any]) -> Split:
        if self.token not in frames.open:  # called by itself, as `generate` does with an encoder
            return _split(self.token, len(self.lanes), inputs)
        inputs.pop(ROWS, None)
        split, total = frames.splits[self.token], _rows_of(inputs)
        if total != split.total:
            raise CompositionError(
                f"The model was called with {split.total} rows and calls its backbone with {total}, so that "
                "the rows of the hybrids cannot be told apart; attach them one at a time."
            )
        return split

    def _prepare(self, inputs: dict[str, Any], rows: Mapping[int, int], total: int) -> None:
        """Give every row positions of its own, and a mask where prompts differ in length."""
        positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
        if positions is not None and positions.ndim == 2:
            inputs["position_ids"] = positions.expand(total, -1)
        if len(set(rows.values())) == 1:
            return
        if is_cached(inputs):
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
        rows = {i: sum(slot.length for slot in self.sources[i].source_slots) for i in parts}
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
        inputs["encoder_attention_mask"] = _joined_parts(parts, "encoder_attention_mask")

    def _lay(self, index: int, context: Context, missing: int) -> None:
        if missing and self.text and context.mask is not None:
            context = replace(context, mask=pad(context.mask, (0, missing)))
            frames.contexts[(context.hybrid, self.stack)] = context

    def _merged(
        self,
        name: str,
        inputs: dict[str, Any],
        before: dict[int, dict[str, Any]],
        after: dict[int, dict[str, Any]],
    ) -> Any:
        """One input for the whole batch again: as it came where no hybrid changed it, else filled up with
        zeros (any id will do where the mask hides it)."""
        if all(after[i].get(name) is before[i].get(name) for i in after):
            return inputs[name]
        longest = max(part[name].shape[1] for part in after.values())
        pieces = []
        for part in after.values():
            value: Tensor = part[name]
            flat = [0, 0] * (value.ndim - 2)
            pieces.append(pad(value, (*flat, 0, longest - value.shape[1])))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

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


def _parts(inputs: dict[str, Any], split: Split) -> dict[int, dict[str, Any]]:
    """Each active hybrid's inputs: tensors of the batch cut to its rows, all else as it is."""
    parts: dict[int, dict[str, Any]] = {i: {} for i in split.active()}
    for name, value in inputs.items():
        of_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == split.total
        pieces = value.split(split.sizes) if of_batch else None
        for i, part in parts.items():
            part[name] = value if pieces is None else pieces[i]
    return parts


def _joined_parts(parts: dict[int, dict[str, Any]], name: str) -> Tensor:
    return torch.cat([part[name] for part in parts.values()])
