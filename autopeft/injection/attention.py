"""kv(attention): keys and values prepended inside the attention function, and terms added to its scores.

Our functions are registered with transformers' `AttentionInterface` and, under the same names, with its
`AttentionMaskInterface` (a name that is not there gets no mask at all: padding would be attended to). They
take the prefix of this call as a keyword argument, pad what has a column for each key (mask, T5's position
bias), and hand on to the function that the model would have used. Past keys are never touched, so a prefix is
in no cache and works in training and generation alike. Terms on scores come to it in the same way (see
`autopeft.injection.scores`). Where a call says which positions of each row are all that will be read, they
ask for these alone.

Prefix keys are used as they are: under rotary positions they are not rotated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.backbones import Place, StackPlaces
from autopeft.composition import Child, one_after_the_other
from autopeft.errors import CompositionError
from autopeft.injection.bind import BoundModule
from autopeft.injection.dispatch import first_input
from autopeft.injection.frames import CONTEXT, PREFIX, READ, SCORES, frames
from autopeft.injection.positions import Position, spread, take
from autopeft.injection.scores import Scores, scores_of
from autopeft.method import Call, Context

__all__ = [
    "DELEGATES",
    "AttentionHooks",
    "Prefix",
    "attending",
    "attention_behind",
    "configs_of",
    "has_prefixes",
]

# Names hold neither "sdpa" nor "flash": model code looks for those words.
DELEGATES = {"eager": "autopeft_plain", "sdpa": "autopeft_fused"}
_BEHIND = {ours: name for name, ours in DELEGATES.items()}


@dataclass
class Prefix:
    """Keys and values for one call of one attention, (1 or batch, length, width); `used` once a function
    took them."""

    keys: Tensor
    values: Tensor
    used: bool = False


def _heads(rows: Tensor, like: Tensor) -> Tensor:
    """(1 or batch, length, width) → (batch, heads, length, head width), shaped like the model's own keys,
    which may have been repeated already for each head of queries."""
    batch, heads, _, width = like.shape
    split = rows.view(rows.shape[0], rows.shape[1], -1, width).transpose(1, 2)
    if split.shape[1] < heads:
        split = split.repeat_interleave(heads // split.shape[1], dim=1)
    return split.expand(batch, -1, -1, -1)


def _padded_mask(
    mask: Tensor | None, prefix: Prefix, query: Tensor, keys: int, *, causal: bool
) -> Tensor | None:
    """The mask with the prefix's columns on the left, visible.

    Without a mask a fused causal attention aligns queries with the first keys, which would be the prefix:
    then the mask is made.
    """
    if mask is None:
        queries = query.shape[2]
        if not causal or queries <= 1:
            return None
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril()
    return pad(mask, (prefix.keys.shape[1], 0), value=True if mask.dtype == torch.bool else 0.0)


def attending(delegate: Callable[..., Any], fused: bool, *, scales: bool = True) -> Callable[..., Any]:
    """An attention function that takes the prefix and the terms of its call and hands on to `delegate`.

    Args:
        delegate: of the form that `transformers` registers: (module, query, key, value, mask, …).
        fused: whether it takes masks of booleans and makes a causal one itself; one that adds its mask to the
            scores is not.
        scales: whether it takes the scale of the scores as `scaling`.
    """

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        prefix = cast("Prefix | None", kwargs.pop(PREFIX, None))
        scores = cast("Scores | None", kwargs.pop(SCORES, None))
        read = cast("Position | None", kwargs.pop(READ, None))
        kwargs.pop(CONTEXT, None)
        given = kwargs.get("is_causal")
        causal = fused and bool(getattr(module, "is_causal", True) if given is None else given)
        mask, width = attention_mask, value.shape[-1]
        if prefix is not None:
            prefix.used = True
            mask = _padded_mask(mask, prefix, query, key.shape[2], causal=causal)
            key = torch.cat([_heads(prefix.keys, key), key], dim=2)
            value = torch.cat([_heads(prefix.values, value), value], dim=2)
            if kwargs.get("position_bias") is not None:
                kwargs["position_bias"] = pad(kwargs["position_bias"], (prefix.keys.shape[1], 0))
        if scores is not None:
            length = 0 if prefix is None else prefix.keys.shape[1]
            query, key, value = scores.append(
                query, key, value, kwargs, prefix=length, fused=fused, scales=scales
            )
        if read is None:
            output, weights = delegate(module, query, key, value, mask, **kwargs)
        else:
            queries, keys = query.shape[2], key.shape[2]
            if mask is None and causal:  # earlier keys, of a cache or a prefix, are seen by every query
                seen = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device)
                mask = seen.tril(keys - queries)
            # The read query's row of each, (1 or batch, heads, queries, keys); one row that serves all stays.
            mask, bias = (
                rows if rows is None or rows.shape[2] == 1 else take(rows, read, 2)
                for rows in (mask, kwargs.pop("position_bias", None))
            )
            if bias is not None:  # not every function knows it
                kwargs["position_bias"] = bias
            output, weights = delegate(module, take(query, read, 2), key, value, mask, **kwargs)
            output = spread(output, read, queries, 1)
        # (batch, queries, heads, …), where features on scores have made the values wider
        return (output if output.shape[-1] == width else output[..., :width]), weights

    return attend


def attention_behind(name: str | None) -> str:
    """The attention implementation that one of ours hands on to; any other is itself."""
    return _BEHIND.get(name or "eager", name or "eager")


def _own_eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The eager function of the model's own file: families differ (Gemma2 caps its scores)."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


for _name, _ours in DELEGATES.items():
    _fused = _name != "eager"
    _delegate = ALL_ATTENTION_FUNCTIONS[_name] if _fused else _own_eager
    AttentionInterface.register(_ours, attending(_delegate, _fused))
    AttentionMaskInterface.register(_ours, ALL_MASK_ATTENTION_FUNCTIONS[_name])


@dataclass
class AttentionHooks:
    """Lays down the context at an attention module, and hands its prefix and what is added to its scores to
    the attention function.

    Attributes:
        place: the attention and where it is.
        token: the hybrid's.
        prefixes: what gives it keys and values.
        terms: what adds to its scores.
    """

    place: Place
    token: int
    prefixes: Sequence[Child]
    terms: Sequence[BoundModule] = ()

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        context = kwargs.get(CONTEXT)
        stack = self.place.site.stack
        if isinstance(context, Context) and context.hybrid == self.token:
            frames.contexts[(self.token, stack)] = context
        if not (self.prefixes or self.terms) or self.token in frames.bare:
            return args, kwargs
        x, handed = first_input(args, kwargs), dict(kwargs)
        if self.prefixes:
            call = Call(frames.context(self.token, stack))
            pairs = [child.key_value(x, call) for child in self.prefixes]
            handed[PREFIX] = Prefix(*one_after_the_other(pairs))
        if self.terms:
            handed[SCORES] = scores_of(self.terms, self.token, x)
        return args, handed

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        handed = {"prefix": kwargs.get(PREFIX), "term on the scores": kwargs.get(SCORES)}
        unused = next((what for what, given in handed.items() if given is not None and not given.used), None)
        if unused is not None:
            raise CompositionError(
                f"{type(module).__name__} did not call the attention function that prefixes are handed to, "
                f"so the {unused} at {self.place.site.path} would be ignored in silence; use lora, adapters "
                "or prompt_tuning on this family."
            )


def configs_of(base: nn.Module, stacks: list[StackPlaces]) -> list[PreTrainedConfig]:
    """Every config object that the attention modules and the roots of these stacks read, once each."""
    modules = [base.get_submodule(s.map.root) for s in stacks]
    modules += [base.get_submodule(p.entry) for s in stacks for p in s.places if p.attends]
    found: dict[int, PreTrainedConfig] = {}
    for module in modules:
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            found[id(config)] = config
    return list(found.values())


def has_prefixes(root: nn.Module, token: int) -> bool:
    """Whether an attention of this stack is handed a prefix of a hybrid; known from the hooks that hand them
    over."""
    owners = (
        getattr(hook, "__self__", None)
        for module in root.modules()
        for hook in module._forward_pre_hooks.values()
    )
    return any(isinstance(h, AttentionHooks) and h.token == token and bool(h.prefixes) for h in owners)
