"""kv(attention): keys and values prepended inside the attention function.

Our functions are registered with transformers' `AttentionInterface` and, under the same names, with its
`AttentionMaskInterface` (a name that is not there gets no mask at all: padding would be attended to). They
take the prefix of this call as a keyword
    argument, pad what
has a column for each key (mask, T5's position bias), and hand on to the function that the model would have
used. Past keys are never touched, so a prefix is in no cache and works in training and generation alike.

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
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.backbones import Place
from autopeft.composition import Child
from autopeft.errors import CompositionError
from autopeft.injection.frames import CONTEXT, PREFIX, frames
from autopeft.method import Call, Context

__all__ = ["DELEGATES", "AttentionHooks", "Prefix"]

# Names hold neither "sdpa" nor "flash": model code looks for those words.
DELEGATES = {"eager": "autopeft_plain", "sdpa": "autopeft_fused"}


@dataclass
class Prefix:
    """Keys and values for one call of one attention, (1 or batch, length, width); `used` once a function
    took them."""

    keys: Tensor
    values: Tensor
    used: bool = False


def _heads(rows: Tensor, like: Tensor) -> Tensor:
    """(1 or batch, length, width) → (batch, heads, length, head width), shaped like the model's own keys."""
    batch, heads, _, width = like.shape
    split = rows.view(rows.shape[0], rows.shape[1], heads, width).transpose(1, 2)
    return split.expand(batch, -1, -1, -1)


def _padded_mask(mask: Tensor | None, length: int, query: Tensor, keys: int, causal: bool) -> Tensor | None:
    """The mask with `length` visible columns on the left.

    Without a mask a fused causal attention aligns queries with the first keys, which would be the prefix:
    then the mask is made.
    """
    if mask is None:
        queries = query.shape[2]
        if not causal or queries == 1:
            return None
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril()
    return pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)


def _attend(delegate: Callable[..., Any], fused: bool) -> Callable[..., Any]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        prefix = cast("Prefix | None", kwargs.pop(PREFIX, None))
        kwargs.pop(CONTEXT, None)
        if prefix is None:
            return delegate(module, query, key, value, attention_mask, **kwargs)
        prefix.used = True
        length = prefix.keys.shape[1]
        given = kwargs.get("is_causal")
        causal = fused and bool(getattr(module, "is_causal", True) if given is None else given)
        mask = _padded_mask(attention_mask, length, query, key.shape[2], causal)
        key = torch.cat([_heads(prefix.keys, key), key], dim=2)
        value = torch.cat([_heads(prefix.values, value), value], dim=2)
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = pad(kwargs["position_bias"], (length, 0))
        return delegate(module, query, key, value, mask, **kwargs)

    return attend


def _own_eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The eager function of the model's own file: families differ (Gemma2 caps its scores)."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def _register() -> None:
    for name, ours in DELEGATES.items():
        fused = name != "eager"
        delegate = ALL_ATTENTION_FUNCTIONS[name] if fused else _own_eager
        AttentionInterface.register(ours, _attend(delegate, fused))
        AttentionMaskInterface.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[name])


_register()


class AttentionHooks:
    """Lays down the context at an attention module, and hands its prefix to the attention function."""

    def __init__(self, place: Place, token: int, prefixes: Sequence[Child]) -> None:
        self.place, self.token, self.prefixes = place, token, tuple(prefixes)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        context = kwargs.get(CONTEXT)
        stack = self.place.site.stack
        if isinstance(context, Context) and context.hybrid == self.token:
            frames.contexts[(self.token, stack)] = context
        if not self.prefixes:
            return args, kwargs
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        call = Call(frames.context(self.token, stack))
        pairs = [child.key_value(x, call) for child in self.prefixes]
        keys, values = pairs[0]
        if len(pairs) > 1:
            batch = max(k.shape[0] for k, _ in pairs)
            keys = torch.cat([k.expand(batch, -1, -1) for k, _ in pairs], dim=1)
            values = torch.cat([v.expand(batch, -1, -1) for _, v in pairs], dim=1)
        return args, {**kwargs, PREFIX: Prefix(keys, values)}

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        prefix = kwargs.get(PREFIX)
        if isinstance(prefix, Prefix) and not prefix.used:
            raise CompositionError(
                f"{type(module).__name__} did not call the attention function that prefixes are handed to, "
                f"so the prefix at "
                f"{self.place.site.path} would be ignored in silence; use lora, adapters or prompt_tuning "
                f"on this family."
            )
