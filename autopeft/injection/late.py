"""Longer sequences from a layer on: rows that are put in front of what a layer reads.

The stack hands each layer masks and positions of the sequence as it entered. Hooks in front of the layers
from the first late prompt on lengthen them by the rows that were put in since. They run outside of what is
checkpointed, so a layer that is recomputed has its own rows, masks and context again. Rows have no position:
learnt positions were added before, relative ones count no distance to them, and rotary ones turn them by
nothing. (T5's first layer makes the distances itself, of rows that stand in front of it as of tokens.) Past
keys hold them, in front of the text's, in the layers that read them. Rows that leave (`Slot.leaves`) are
taken off behind their layer. Behind the last layer the sequence is as long again as the stack takes it to
be, but where a decoder attends to what an encoder yields.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from autopeft.backbones import StackPlaces
from autopeft.errors import CompositionError, MethodError
from autopeft.injection.bind import BoundModule, rows_of
from autopeft.injection.dispatch import first_input, with_input
from autopeft.injection.frames import CONTEXT, frames
from autopeft.method import Call, Context
from autopeft.spec import BackboneSpec

__all__ = ["LateHooks", "require_room"]


def require_room(prompts: Sequence[BoundModule], stack: StackPlaces, index: int, spec: BackboneSpec) -> None:
    """Check that one or several prompts can put rows in front of this layer of a stack, and ask for no other
    place.

    Raises:
        CompositionError: it is not known what the family hands its layers, or its layers do not take rows.
        MethodError: a prompt asks for another place than the front, or for that of rows and for new ones.
    """
    puts = f"{prompts[0].name} puts rows in front of a layer"
    if spec.generic:
        raise CompositionError(
            f"{puts}, and it is not known what masks and positions {spec.family!r} hands its layers; use "
            "prompt_tuning or p_tuning."
        )
    if stack.map.unplaced:
        raise CompositionError(
            f"{puts}, but {spec.family!r} {stack.map.unplaced}; use prompt_tuning or p_tuning."
        )
    if stack.runs > 1:
        raise CompositionError(
            f"{puts}, but a layer of {spec.family!r} runs {stack.runs} times, so that they would be put in "
            "each time; use prompt_tuning or p_tuning."
        )
    if index == 0 and stack.blends:
        raise CompositionError(
            f"{puts}, but {spec.family!r} blends what its first layer read with what it yields; put them in "
            "front of a later layer, or use prompt_tuning or p_tuning."
        )
    for prompt in prompts:
        if not all(slot.in_front for slot in prompt.slots):
            raise MethodError(
                f"{prompt.name} asks for a place among the tokens at {prompt.site.path}, but what a layer "
                "reads has no positions any more; let its slots there have offset 0 at the front."
            )
        if len({(slot.renews, slot.leaves) for slot in prompt.slots}) > 1:
            raise MethodError(
                f"{prompt.name} has slots at {prompt.site.path} of several sorts: rows that are put in, made "
                "anew, or that leave behind the layer; let all of its slots there do the same."
            )


@dataclass
class LateHooks:
    """The hook in front of one layer. Which rows are put in or made anew is asked in each forward, as a phase
    of the training may settle it.

    Attributes:
        stack: the stack's name.
        token: the hybrid's.
        causal: whether its positions see none behind them.
        ones: whether its layers are handed masks of ones where a position is seen.
        prompts: what may act in front of this layer.
        below: what may act in front of the layers below.
        sine_first: whether rotary tables come as (sine, cosine).
    """

    stack: str
    token: int
    causal: bool
    ones: bool
    prompts: tuple[BoundModule, ...]
    below: tuple[BoundModule, ...]
    sine_first: bool = False

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.token in frames.bare:
            return args, kwargs
        context, x = frames.context(self.token, self.stack), first_input(args, kwargs)
        if context.lost:
            raise CompositionError(
                f"This model calls the layers of its {self.stack} past the module that takes its inputs, so "
                "that prompts in front of a layer cannot be placed; use lora or adapters on this family."
            )
        if context.cached:
            context = self._further(context)
        else:
            x, context = self._longer(self._renewed(x, context), context)
        if self.prompts:
            frames.contexts[(self.token, self.stack)] = context
        rows = context.reserved.late  # put in so far, those of this layer included
        if context.cached:
            rows = sum(slot.adds for prompt in (*self.below, *self.prompts) for slot in prompt.slots)
        if not rows and not any(slot.leaves for prompt in self.below for slot in prompt.slots):
            return with_input(args, kwargs, x)
        names = [
            n for n, p in inspect.signature(module.forward).parameters.items() if p.kind < p.VAR_POSITIONAL
        ]
        change = partial(self._argument, rows=rows, length=x.shape[1], context=context)
        named = (change(n, v) for n, v in zip(names, args, strict=False))
        args = (*named, *args[len(names) :])  # what has no name still belongs to the layer
        kwargs = {n: change(n, v) for n, v in kwargs.items()}
        if CONTEXT in kwargs:
            kwargs[CONTEXT] = context
        return with_input(args, kwargs, x)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The layer's output without the rows that stand in it alone; the context forgets them."""
        context = frames.context(self.token, self.stack)
        rows = sum(slot.length for prompt in self.prompts for slot in prompt.slots if slot.leaves)
        if self.token in frames.bare or context.cached or not rows:
            return output
        mask = None if context.mask is None else context.mask[:, rows:]
        frames.contexts[(self.token, self.stack)] = replace(
            context, reserved=context.reserved.left(), mask=mask
        )
        return _without(output, rows, right=context.reserved.right)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The last layer's output without the rows of late prompts."""
        context = frames.context(self.token, self.stack)
        rows = context.reserved.late
        if self.token in frames.bare or context.cached or not rows:
            return output
        return _without(output, rows, right=context.reserved.right)

    def _renewed(self, x: Tensor, context: Context) -> Tensor:
        """The layer's input x with the rows renewed that its prompts put in at a layer below."""
        for prompt in self.prompts:
            if not any(slot.renews for slot in prompt.slots):
                continue
            if all(name != prompt.name for name, _ in context.reserved.owners):
                raise MethodError(
                    f"{prompt.name} makes rows anew at {prompt.site.path}, but has none there; let a slot of "
                    "a layer below, or of the embeddings, put them in."
                )
            call = Call(context, carried=context.reserved.own(x, prompt.name))
            rows = prompt.prompt(context.reserved.text(x), call)
            x = context.reserved.renewed(x, rows, prompt.name)
        return x

    def _longer(self, x: Tensor, context: Context) -> tuple[Tensor, Context]:
        """The layer's input x with the rows that its prompts put in, and the context that counts them; those
        that leave behind the layer outermost."""
        staying = [prompt for prompt in self.prompts if any(slot.adds for slot in prompt.slots)]
        leaving = [prompt for prompt in self.prompts if any(slot.leaves for slot in prompt.slots)]
        for prompts in filter(None, (staying, leaving)):
            text = context.reserved.text(x)
            made = rows_of(prompts, text, Call(context))
            owners = tuple((p.name, rows.shape[1]) for p, rows in zip(prompts, made, strict=True))
            reserved = context.reserved.led_by(owners, text.shape[1])
            count = reserved.count - context.reserved.count
            mask = None if context.mask is None else pad(context.mask, (count, 0), value=1)
            x = torch.cat([x, *made] if reserved.right else [*made, x], dim=1)
            context = replace(context, reserved=reserved, mask=mask)
        return x, context

    def _further(self, context: Context) -> Context:
        """The context of a step from a cache, whose past keys hold the rows of the prompts here."""
        added = [(p.name, sum(slot.adds for slot in p.slots)) for p in self.prompts]
        owners = tuple((name, rows) for name, rows in added if rows)
        if not owners:
            return context
        return replace(context, earlier=context.earlier.led_by(owners, int(context.earlier.tokens or 0)))

    def _argument(self, name: str, value: Any, *, rows: int, length: int, context: Context) -> Any:
        """An argument of the layer for its `length` positions, `rows` of which were put in."""
        if name == "position_bias" and value is not None:
            # What a layer above the prompt has made is long enough, and too long where its rows have left.
            missing = length - value.shape[-1]
            return pad(value, (missing, 0, missing, 0)) if missing else value
        if not rows:
            return value
        if name == "attention_mask" and value is not None:
            return self._mask(value, rows, context.cached)
        if context.cached or context.reserved.right:
            return value
        if name == "position_embeddings" and value is not None:
            nothing = (0.0, 1.0) if self.sine_first else (1.0, 0.0)
            return tuple(pad(t, (0, 0, rows, 0), value=v) for t, v in zip(value, nothing, strict=True))
        return pad(value, (rows, 0)) if name == "position_ids" and value is not None else value

    def _mask(self, mask: Any, rows: int, cached: bool) -> Tensor:
        """A mask (batch, heads, queries, keys) or (batch, keys) with the rows' columns, which all see, and,
        where the rows are queries, with what they see."""
        if not isinstance(mask, Tensor):
            raise CompositionError(
                f"Prompts in front of a layer need a mask that is a tensor, but this attention has a "
                f"{type(mask).__name__}; load the model with attn_implementation='sdpa'."
            )
        mask = mask.bool() if self.ones else mask
        seen, hidden = (True, False) if mask.dtype == torch.bool else (0, torch.finfo(mask.dtype).min)
        if mask.ndim == 2:
            return pad(mask, (rows, 0), value=1)
        wide = pad(mask, (rows, 0), value=seen)
        if cached or (mask.shape[2] == 1 and not self.causal):
            return wide
        # Windows differ from position to position: rows see what any of them does.
        own = (wide.any(2, keepdim=True) if mask.dtype == torch.bool else wide.amax(2, keepdim=True)).expand(
            -1, -1, rows, -1
        )
        if self.causal:
            own = torch.full_like(own, hidden)
            earlier = torch.ones(rows, rows, dtype=torch.bool, device=mask.device).tril()
            own[..., :rows] = own[..., :rows].masked_fill(earlier, seen)
        return torch.cat([own, wide], dim=2)


def _without(output: Any, rows: int, *, right: bool) -> Any:
    """A layer's output without so many rows in front of its positions, or behind them."""
    y: Tensor = output[0] if isinstance(output, tuple) else output
    y = y[:, : y.shape[1] - rows] if right else y[:, rows:]
    return (y, *output[1:]) if isinstance(output, tuple) else y
