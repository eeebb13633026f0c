"""Longer sequences by reservation, and the start of every context.

The hooks sit on the root of a stack (the module whose forward takes the public inputs). On the way in, ids,
mask, token types and positions are extended by P rows, which the embeddings then overwrite with prompts; on
the way out, and before a pooler, the rows are dropped again. Nothing between the two knows of it. Images
have no ids: their rows are appended to the embeddings' output, on the right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbones import StackMap
from autopeft.errors import CompositionError, UsageError
from autopeft.injection.bind import BoundModule
from autopeft.injection.frames import CONTEXT, frames
from autopeft.injection.threads import Forwards
from autopeft.method import Call, Context
from autopeft.spec import BackboneSpec

__all__ = ["PoolerHooks", "RootHooks", "cut_output", "cut_rows", "is_cached", "named_inputs"]


@dataclass
class RootHooks:
    """Hooks on a stack's root.

    Attributes:
        stack: the stack's map.
        spec: the backbone.
        token: the hybrid's.
        prompts: what fills the reserved rows, in order.
        keep: rows stay in the output (a decoder attends to them).
        source: for a decoder, the encoder's hooks, whose prompts add rows to what it attends to.
        dummy_id: an id that is not padding.
        first_position: the first explicit position id.
        forwards: counts the threads that are inside.
    """

    stack: StackMap
    spec: BackboneSpec
    token: int
    prompts: tuple[BoundModule, ...] = ()
    keep: bool = False
    source: RootHooks | None = None
    dummy_id: int = 0
    first_position: int = 0
    forwards: Forwards = field(default_factory=lambda: Forwards("a hybrid"))

    @property
    def rows(self) -> int:
        """How many rows are reserved now: a training may take some away."""
        return sum(int(p.module.length) for p in self.prompts)

    @property
    def source_rows(self) -> int:
        """How many rows the encoder's prompts add to what a decoder attends to."""
        return 0 if self.source is None else self.source.rows

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.forwards.enter()
        signature = inspect.signature(module.forward)
        inputs = named_inputs(signature, args, kwargs)
        context = self.enter(inputs)
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
            inputs[CONTEXT] = context
        return (), inputs

    def enter(self, inputs: dict[str, Any]) -> Context:
        """Extend a forward's named inputs in place, and lay down its context."""
        frames.forget_captured(self.token)
        task_id = inputs.pop("task_id", None)
        cached = is_cached(inputs)
        rows = self.rows
        if self.source_rows:
            self._pad_source(inputs)
        if rows and self.spec.modality == "text":
            self._extend(inputs, rows, cached)
        mask = inputs.get("attention_mask")
        reserved = 0 if cached else rows
        if self.spec.modality == "vision":
            mask = None
        source = inputs.get("encoder_attention_mask")
        context = Context(
            mask=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            source_mask=source if isinstance(source, Tensor) and source.ndim == 2 else None,
            task_id=task_id,
            reserved=reserved,
            cached=cached,
            hybrid=self.token,
        )
        frames.contexts[(self.token, self.stack.name)] = context
        if rows and inputs.get("inputs_embeds") is not None:
            frames.filled.add((self.token, self.stack.name))
        else:
            frames.filled.discard((self.token, self.stack.name))
        return context

    def _pad_source(self, inputs: dict[str, Any]) -> None:
        states, mask = inputs.get("encoder_hidden_states"), inputs.get("encoder_attention_mask")
        if states is not None and mask is not None and mask.shape[1] + self.source_rows == states.shape[1]:
            inputs["encoder_attention_mask"] = torch.cat(
                [mask.new_ones(mask.shape[0], self.source_rows), mask], dim=1
            )

    def _extend(self, inputs: dict[str, Any], rows: int, cached: bool) -> None:
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if mask is not None:
            if mask.ndim != 2:
                raise CompositionError(
                    f"Prompts lengthen the sequence and need a mask of shape (batch, positions), but got "
                    f"{tuple(mask.shape)}; pass the 2-D mask."
                )
            inputs["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], rows), mask], dim=1)
        if positions is not None:
            moved = positions + rows
            if not cached:
                front = (
                    torch.arange(rows, device=positions.device, dtype=positions.dtype) + self.first_position
                )
                moved = torch.cat([front.expand(positions.shape[0], -1), moved], dim=1)
            inputs["position_ids"] = moved
        if cached:
            return
        self._extend_tokens(inputs, rows)

    def _extend_tokens(self, inputs: dict[str, Any], rows: int) -> None:
        ids, embeds, types = (inputs.get(k) for k in ("input_ids", "inputs_embeds", "token_type_ids"))
        if ids is not None:
            inputs["input_ids"] = torch.cat([ids.new_full((ids.shape[0], rows), self.dummy_id), ids], dim=1)
            length = int(ids.shape[1])
        elif embeds is not None:
            call = Call(Context(reserved=rows, hybrid=self.token))
            made = [p.prompt(call, embeds.dtype).expand(embeds.shape[0], -1, -1) for p in self.prompts]
            inputs["inputs_embeds"] = torch.cat([*made, embeds], dim=1)
            length = int(embeds.shape[1])
        else:
            raise CompositionError("Prompts need input_ids or inputs_embeds, but the forward got neither.")
        if types is not None:
            inputs["token_type_ids"] = torch.cat([types.new_zeros(types.shape[0], rows), types], dim=1)
        limit = self.spec.max_positions
        if limit is not None and length + rows > limit:
            raise UsageError(
                f"{length} tokens and {rows} prompt rows exceed the {limit} positions of this backbone; "
                f"shorten the text to {limit - rows} "
                "tokens (max length) or the prompt."
            )

    def reached(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """At the first layer: whether its forward came by the root.

        Raises:
            CompositionError: it did not, so that the prompts are not in the sequence.
        """
        if frames.context(self.token, self.stack.name).lost:
            raise CompositionError(
                f"This model calls the layers of its {self.stack.name} past "
                f"{self.stack.root or 'the base model'!r}, where prompts enter, so that they would be "
                "ignored in silence; use prefix_tuning, lora or adapters on this family."
            )

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        reserved = frames.context(self.token, self.stack.name).reserved
        if not reserved or self.keep:
            return output
        right = self.spec.prompt_side == "right"
        return cut_output(output, lambda states: cut_rows(states, reserved, right))

    def cleanup(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the context, also after an exception."""
        self.forwards.leave()
        frames.contexts.pop((self.token, self.stack.name), None)


@dataclass
class PoolerHooks:
    """Drops the reserved rows before a pooler reads the first one."""

    stack: str
    token: int
    right: bool

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        reserved = frames.context(self.token, self.stack).reserved
        if not reserved:
            return None
        return (cut_rows(args[0], reserved, self.right), *args[1:])


def named_inputs(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """All arguments by name: BERT's heads pass some by position."""
    names = [
        n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)
    ]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def is_cached(inputs: dict[str, Any]) -> bool:
    """Whether keys and values of earlier positions come from a cache."""
    cache = inputs.get("cache")
    if cache is None:
        cache = inputs.get("past_key_values")
    return cache is not None and int(cache.get_seq_length()) > 0


def cut_rows(states: Tensor, reserved: int, right: bool) -> Tensor:
    """Hidden states (batch, positions, hidden) without their reserved rows."""
    return states[:, :-reserved] if right else states[:, reserved:]


def cut_output(output: Any, cut: Callable[[Tensor], Tensor]) -> Any:
    """The output without its reserved rows: last hidden state, and all hidden states where they were asked
    for."""
    if isinstance(output, tuple):
        return (
            cut(output[0]),
            *(tuple(cut(h) for h in x) if _hidden_states(x) else x for x in output[1:]),
        )
    output.last_hidden_state = cut(output.last_hidden_state)
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = tuple(cut(h) for h in output.hidden_states)
    return output


def _hidden_states(value: Any) -> bool:
    """Whether an element of a tuple output is all hidden states (attentions have four dimensions)."""
    return isinstance(value, tuple) and all(isinstance(h, Tensor) and h.ndim == 3 for h in value)
