"""Longer sequences by reservation, and the start of every context.

The hooks sit on the root of a stack (the module whose forward takes the public inputs). On the way in, ids,
mask, token types and positions are extended by P rows, which the embeddings then overwrite with prompts; on
the way out, and before a pooler, the rows are dropped again. Nothing between the two knows of it. Images
have no ids: their rows are appended to the embeddings' output, on the right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbones import StackMap
from autopeft.composition import Child
from autopeft.errors import CompositionError, UsageError
from autopeft.injection.attention import has_prefixes
from autopeft.injection.bind import BoundModule, rows_of
from autopeft.injection.caching import moving, not_kept
from autopeft.injection.frames import CONTEXT, FEATURES, frames
from autopeft.injection.threads import Forwards
from autopeft.method import BARE, Call, Context, Reserved, Slot
from autopeft.method.reserved import reserve
from autopeft.spec import BackboneSpec

__all__ = ["Answering", "RootHooks", "named_inputs"]

_CACHES = ("cache", "past_key_values")  # later and earlier name of transformers


@dataclass
class Answering:
    """What is taken of a forward that does not say it.

    Attributes:
        task: the number of the task that all its rows are of.
    """

    task: int | None = None


@dataclass
class RootHooks:
    """Hooks on a stack's root.

    Attributes:
        stack: the stack's map; where that says where its states leave, `after` serves that module as well.
        spec: the backbone.
        token: the hybrid's.
        prompts: what fills the reserved rows, in order.
        hooks: what acts on the embeddings, which a forward that is given them does not look up.
        keep: rows stay in the output (a decoder attends to them).
        source: for a decoder, the encoder's hooks, whose prompts add rows to what it attends to.
        late: what may put rows in front of layers of this stack.
        dummy_id: an id that is not padding.
        first_position: the first explicit position id.
        forwards: counts the threads that are inside.
        prepass: whether the bare backbone always runs first, for its last hidden states.
        of_bare: prompts that are made of these; it runs first where one of them has rows.
        sees_text: whether a prompt depends on the text.
        logits: whether something acts on the logits behind this stack, which reads the forward's context.
        reads_text: whether the stack reads tokens, as every decoder does.
        answering: what is taken of a forward that does not say it.
    """

    stack: StackMap
    spec: BackboneSpec
    token: int
    prompts: tuple[BoundModule, ...] = ()
    hooks: tuple[Child, ...] = ()
    keep: bool = False
    source: RootHooks | None = None
    late: tuple[BoundModule, ...] = ()
    dummy_id: int = 0
    first_position: int = 0
    forwards: Forwards = field(default_factory=lambda: Forwards("a hybrid"))
    prepass: bool = False
    of_bare: tuple[BoundModule, ...] = ()
    sees_text: bool = False
    logits: bool = False
    reads_text: bool = True
    answering: Answering = field(default_factory=Answering)
    _prefixed: bool | None = field(default=None, init=False)  # known when all hooks are there

    @property
    def rows(self) -> int:
        """How many rows are reserved now: a training may take some away."""
        return sum(slot.length for prompt in self.prompts for slot in prompt.slots)

    @property
    def late_rows(self) -> int:
        """How many rows its layers put in front."""
        return sum(slot.adds for slot in self._late_slots())

    def _late_slots(self) -> list[Slot]:
        return [slot for prompt in self.late for slot in prompt.slots]

    @property
    def reserving(self) -> tuple[Slot, ...]:
        """All rows that its output has, those of its layers in front."""
        first = (Slot(self.late_rows),) if self.late_rows else ()
        return (*first, *(slot for prompt in self.prompts for slot in prompt.slots))

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Extend a forward's inputs, and lay down its context.

        Raises:
            CompositionError: the root scales the embeddings that it looks up and was given some, a mask does
                not tell padding, a row holds several texts, or a prompt is another than the one in the cache.
            UsageError: text and prompts are longer than the backbone's positions.
        """
        if self.token in frames.bare:
            return args, kwargs
        self.forwards.enter()
        signature = inspect.signature(module.forward)
        inputs = named_inputs(signature, args, kwargs)

        # The bare backbone's last hidden states, without gradients: not in a step from a cache, nor where no
        # prompt that is made of them has rows at present.
        features: dict[str, Tensor] = {}
        if (self.prepass or any(prompt.slots for prompt in self.of_bare)) and not _past_length(inputs):
            left_out = ("task_id", FEATURES, *_CACHES)
            plain = {name: value for name, value in inputs.items() if name not in left_out}
            if "use_cache" in signature.parameters:
                plain["use_cache"] = False
            with torch.no_grad(), frames.without(self.token):
                output = module(**plain)
            features[BARE] = output[0] if isinstance(output, tuple) else output.last_hidden_state

        if self._leads(module):
            _count_from_text(module, signature.parameters, inputs)
        scale = getattr(module, "embed_scale", 1.0) if self.stack.scales else 1.0
        if inputs.get("inputs_embeds") is not None and scale != 1.0 and (self.rows or self.hooks):
            raise CompositionError(
                f"{type(module).__name__} multiplies the embeddings that it looks up by {scale:.4g}, but not "
                "those that it is given, so that prompts and what else acts on embeddings would be another "
                "thing there; pass input_ids."
            )
        # What a recomputation that stopped early left captured would keep activations alive.
        frames.captured = {k: v for k, v in frames.captured.items() if k[0] != self.token}
        task_id, more_features = inputs.pop("task_id", None), inputs.pop(FEATURES, None)
        if task_id is None and self.answering.task is not None:
            first = next(v for v in inputs.values() if isinstance(v, Tensor))
            task_id = torch.full((len(first),), self.answering.task, device=first.device)
        past = _past_length(inputs)
        cached = past > 0

        # The mask of what a decoder attends to, with the rows of the encoder's prompts.
        added = () if self.source is None else self.source.reserving
        if added:
            states, mask = inputs.get("encoder_hidden_states"), inputs.get("encoder_attention_mask")
            rows = sum(slot.length for slot in added)
            if states is not None and mask is not None and mask.shape[1] + rows == states.shape[1]:
                inputs["encoder_attention_mask"] = self.source_mask(mask)

        # What the text says of itself, before rows are reserved.
        slots = [slot for prompt in self.prompts for slot in prompt.slots]
        given = _mask(inputs, "attention_mask") if self.reads_text else None
        other = _other_mask(inputs, "attention_mask")
        if self.sees_text:
            Context(other_mask=other).told("What is made of a text's tokens is told which are padding by")
        ids = _known_tokens(inputs, given) if self.logits else None
        again = _again(inputs) if self.stack.causal and not cached else None
        if (self.rows or self.sees_text) and again is not None and bool(again):
            raise CompositionError(
                "Positions begin again within a row, so that it holds several texts, and a prompt would "
                "stand in front of the first alone, or be made of all of them; give each text a row of its "
                "own, without packing, or use prefix_tuning or lora."
            )
        shaped = (inputs.get(name) for name in ("input_ids", "inputs_embeds"))
        tokens = next((int(value.shape[1]) for value in shaped if value is not None), None)

        # The places of the reserved rows among the positions of the mask, or of the text without a mask.
        if self.reads_text and cached and self.stack.causal:
            # How many tokens the shortest text had before this step. Without rows behind tokens the mask is
            # not read: it may lie on another device.
            shortest = 0
            if any(slot.offset for slot in slots):
                shortest = past - self.rows
                if given is not None:
                    shortest = int(given[:, : given.shape[1] - (tokens or 0)].sum(1).min())
            why = moving(slots, sees_text=self.sees_text, tokens=shortest)
            if why:
                what = "A prompt" if slots else "What the head reads"
                raise CompositionError(
                    f"{what} {why}, which has grown since the keys and values in the cache were made; "
                    "generate with use_cache=False."
                )
            why = not_kept(self.spec.stack(self.stack.name), self._late_slots())
            if why:
                raise CompositionError(f"Rows in front of a layer {why}; generate with use_cache=False.")
        leading = any(prompt.site.layer == 0 and prompt.slots for prompt in self.late)
        if leading and self.stack.distances and given is not None and not bool(given[:, :1].all()):
            raise CompositionError(
                "The first layer counts distances, to rows in front of it too, and padding on the left lies "
                "between these and the text; pad texts on the right, or begin at a later layer."
            )
        owners = tuple((prompt.name, sum(slot.length for slot in prompt.slots)) for prompt in self.prompts)
        if not self.reads_text:
            reserved = Reserved(self.rows, right=self.spec.prompt_side == "right", owners=owners)
        elif not slots:
            reserved = Reserved(0, tokens)
        elif tokens is None:
            raise CompositionError("Prompts need input_ids or inputs_embeds, but the forward got neither.")
        else:
            Context(other_mask=other).told("Prompts lengthen the sequence and need")
            mask = inputs.get("attention_mask")
            reserved = self.laid(mask, tokens if mask is None else int(mask.shape[1]))
            reserved = replace(reserved, owners=owners)
        if reserved.count and self.reads_text:
            self._extend(inputs, reserved, cached)

        earlier = Reserved()
        if cached:
            length = past + (tokens or 0) - reserved.count
            earlier = replace(reserved, tokens=length if given is None else int(given.shape[1]))
        context = Context(
            mask=None if given is None else _mask(inputs, "attention_mask"),
            source_mask=_mask(inputs, "encoder_attention_mask"),
            other_mask=other if self.reads_text else "",
            other_source_mask=_other_mask(inputs, "encoder_attention_mask"),
            again=again,
            text_mask=given,
            task_id=task_id,
            reserved=Reserved() if cached else reserved,
            earlier=earlier,
            features={**features, **(more_features or {})},
            tokens=ids,
            cache=_cache(inputs) if self.logits else None,
            cached=cached,
            past=max(past - self.rows, 0),
            hybrid=self.token,
            further=frames.further,
        )
        frames.entered = (self.token, self.stack.name)
        frames.contexts[frames.entered] = context
        frames.embedded.discard(frames.entered)
        if inputs.get("inputs_embeds") is not None:
            inputs["inputs_embeds"] = self._embedded(inputs["inputs_embeds"], context)
            frames.embedded.add(frames.entered)
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
            inputs[CONTEXT] = context
        return (), inputs

    def _leads(self, module: nn.Module) -> bool:
        """Whether something stands in front of the text of this root, a causal stack with rotary positions:
        how far a token is from that depends on where the text begins."""
        if not self.stack.causal or getattr(module, "rotary_emb", None) is None:
            return False
        if self._prefixed is None:
            self._prefixed = has_prefixes(module, self.token)
        return bool(self.reserving or self._late_slots()) or self._prefixed

    def _embedded(self, embeds: Tensor, context: Context) -> Tensor:
        """Embeddings that the forward was given (batch, tokens, width), as they would be had it looked them
        up."""
        reserved, call = context.reserved, Call(context)
        if reserved.count:
            embeds = reserved.around(embeds, embeds.new_zeros(len(embeds), reserved.count, embeds.shape[2]))
        found = embeds
        for child in self.hooks:
            found = found + child.delta(embeds, embeds, call)
        if not reserved.count:
            return found
        text = reserved.text(found)
        return reserved.filled(found, torch.cat(rows_of(self.prompts, text, call), dim=1))

    def laid(self, mask: Tensor | None, tokens: int) -> Reserved:
        """The places of its rows in texts with this mask, those in front of layers left out."""
        slots = [slot for prompt in self.prompts for slot in prompt.slots]
        beside = self.stack.distances or self.spec.stack(self.stack.name).window is not None
        return reserve(slots, mask, tokens, beside=beside)

    def source_mask(self, mask: Tensor) -> Tensor:
        """A source's mask (batch, tokens) with its reserved rows."""
        assert self.source is not None
        reserved, late = self.source.laid(mask, mask.shape[1]), self.source.late_rows
        if late:
            reserved = reserved.led_by((("", late),), mask.shape[1])
        return reserved.around(mask, mask.new_ones(mask.shape[0], reserved.count))

    def _extend(self, inputs: dict[str, Any], reserved: Reserved, cached: bool) -> None:
        """Lengthen a text's inputs by the reserved rows; in a step from a cache only mask and positions."""
        ids, types = inputs.get("input_ids"), inputs.get("token_type_ids")
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if not cached:
            length, limit = int(reserved.tokens or 0), self.spec.max_positions
            if limit is not None and length + reserved.count > limit:
                raise UsageError(
                    f"{length} tokens and {reserved.count} prompt rows exceed the {limit} positions of this "
                    f"backbone; shorten the text to {limit - reserved.count} tokens (max length) or the "
                    "prompt."
                )
            if ids is not None:
                own = ids.new_full((ids.shape[0], reserved.count), self.dummy_id)
                inputs["input_ids"] = reserved.around(ids, own)
            if types is not None:
                own = types.new_zeros(types.shape[0], reserved.count)
                inputs["token_type_ids"] = reserved.around(types, own)
        if mask is not None:
            inputs["attention_mask"] = reserved.around(mask, mask.new_ones(mask.shape[0], reserved.count))
        if positions is None:
            return
        if cached or reserved.ordinals is None or reserved.kept is None:
            moved, own = positions + reserved.count, torch.arange(reserved.count)[None]
        else:
            before = reserved.kept - torch.arange(reserved.kept.shape[1], device=reserved.kept.device)
            moved, own = positions + before.to(positions.device), reserved.ordinals
        if not cached:
            own = own.to(positions.device, positions.dtype) + self.first_position
            moved = reserved.around(moved, own.expand(moved.shape[0], -1))
        inputs["position_ids"] = moved

    def reached(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """At the first layer: whether its forward came by the root.

        Raises:
            CompositionError: it did not, so that the prompts are not in the sequence.
        """
        if self.token not in frames.bare and frames.context(self.token, self.stack.name).lost:
            raise CompositionError(
                f"This model calls the layers of its {self.stack.name} past "
                f"{self.stack.root or 'the base model'!r}, where prompts enter, so that they would be "
                "ignored in silence; use prefix_tuning, lora or adapters on this family."
            )

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        context = frames.context(self.token, self.stack.name)
        reserved = context.reserved
        if context.cached or self.keep or self.token in frames.bare:
            return output
        if self.stack.leaves is None:
            return _cut_output(output, reserved.text)

        def cut(states: Tensor) -> Tensor:  # what has left behind the layers is without them already
            return reserved.text(states) if states.shape[1] > int(reserved.tokens or 0) else states

        return _cut_output(output, cut)

    def pooled(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Drop the reserved rows before a pooler reads the first one."""
        reserved = frames.context(self.token, self.stack.name).reserved
        if not reserved.count or self.token in frames.bare:
            return None
        return (reserved.text(args[0]), *args[1:])

    def cleanup(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the context, also after an exception."""
        if self.token in frames.bare:
            return
        self.forwards.leave()
        context = frames.contexts.pop((self.token, self.stack.name), None)
        if self.logits and context is not None:
            frames.behind[self.token] = context


def named_inputs(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """All arguments by name: BERT's heads pass some by position.

    Raises:
        UsageError: there are more by position than the forward has names for.
    """
    names = [
        n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)
    ]
    if len(args) > len(names):
        raise UsageError(
            f"The forward got {len(args)} inputs by position, but names {len(names)} that may come so"
            f"{': ' if names else ''}{', '.join(names)}; pass the inputs by name."
        )
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _count_from_text(module: nn.Module, known: Collection[str], inputs: dict[str, Any]) -> None:
    """Let positions begin at the first token behind padding on the left, where the root takes some and got
    none. By itself it counts the padding, so that a row of a batch depends on how long the others are."""
    mask, ids = _mask(inputs, "attention_mask"), inputs.get("input_ids")
    new = inputs.get("inputs_embeds") if ids is None else ids
    if mask is None or new is None or inputs.get("position_ids") is not None or "position_ids" not in known:
        return
    if mask.shape[1] != new.shape[1] and not _past_length(inputs):
        return  # it is as long as a cache that is still empty
    ahead = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    places = (torch.arange(mask.shape[1], device=mask.device) - ahead).clamp(min=0)
    inputs["position_ids"] = places[:, -new.shape[1] :].to(new.device)


def _past_length(inputs: Mapping[str, Any]) -> int:
    """How many earlier positions have keys and values in a cache; above 0 in a decoding step."""
    cache = _cache(inputs)
    return 0 if cache is None else int(cache.get_seq_length())


def _cache(inputs: Mapping[str, Any]) -> Any:
    """The cache of keys and values that the caller gave; `None` without one."""
    return next((inputs[name] for name in _CACHES if inputs.get(name) is not None), None)


def _known_tokens(inputs: dict[str, Any], mask: Tensor | None) -> Tensor | None:
    """The ids (batch, tokens), where each row is one text whose tokens the mask (batch, positions) tells."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or (mask is None and inputs.get("attention_mask") is not None):
        return None
    again = _again(inputs)
    return ids if again is None or not bool(again) else None


def _again(inputs: dict[str, Any]) -> Tensor | None:
    """(), whether positions begin again within a row, which without a mask is transformers' word for several
    texts in it; `None` where they cannot say so. Read its value only where it is needed: the host then
    waits for the device."""
    places = inputs.get("position_ids")
    if inputs.get("attention_mask") is not None or places is None:
        return None
    again: Tensor = (places.diff(dim=-1) != 1).any()
    return again


def _other_mask(inputs: dict[str, Any], name: str) -> str:
    """The mask of this name in words, where it came in another form than (batch, positions)."""
    mask = inputs.get(name)
    if mask is None or _mask(inputs, name) is not None:
        return ""
    return str(tuple(mask.shape)) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"


def _mask(inputs: dict[str, Any], name: str) -> Tensor | None:
    """The mask (batch, positions) of this name, where one was given in this form."""
    mask = inputs.get(name)
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _cut_output(output: Any, cut: Callable[[Tensor], Tensor]) -> Any:
    """The output without its reserved rows: last hidden state, and all hidden states where it has them."""

    def all_hidden(value: Any) -> bool:  # attentions have four dimensions
        return isinstance(value, tuple) and all(isinstance(h, Tensor) and h.ndim == 3 for h in value)

    if isinstance(output, tuple):
        return (
            cut(output[0]),
            *(tuple(cut(h) for h in x) if all_hidden(x) else x for x in output[1:]),
        )
    output.last_hidden_state = cut(output.last_hidden_state)
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = tuple(cut(h) for h in output.hidden_states)
    return output
