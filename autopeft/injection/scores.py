"""scores(attention): features of queries and keys whose product comes to an attention's scores.

Inside the attention function they are appended to queries and keys, so that the attention scales, caps and
masks the term as it does its own products, and groups of heads share keys as ever. Columns of prefixes have
zeros there. Features are made when the function is called: only then is it known how many keys a cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from autopeft.errors import CompositionError, MethodError
from autopeft.injection.bind import BoundModule
from autopeft.injection.frames import frames
from autopeft.method import Call, Context, Places

__all__ = ["Features", "Scores", "places_of", "scores_of", "side_by_side"]

Features = tuple[Tensor, Tensor]
"""Of queries (1 or batch, queries, width) and of keys (1 or batch, keys, width)."""

_ALIGNED = 8  # fused kernels want heads of such a multiple, and values as wide as keys


@dataclass
class Scores:
    """The features of one call of one attention; `used` once a function took them.

    Attributes:
        make: gives them for so many queries and keys.
    """

    make: Callable[[int, int], Features]
    used: bool = False

    def append(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kwargs: dict[str, Any],
        *,
        prefix: int,
        fused: bool,
        scales: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (batch, heads, positions, width) with the features behind the width.

        Args:
            kwargs: of the attention function; gets the scale that the width of the model's own heads makes.
            prefix: how many of the keys, in front, are a prefix's.
            fused: whether values are to be as wide as keys.
            scales: whether the function takes a scale.
        """
        self.used = True
        width = query.shape[-1]
        if scales and kwargs.get("scaling") is None:
            kwargs["scaling"] = width**-0.5
        of_queries, of_keys = self.make(query.shape[2], key.shape[2] - prefix)
        of_keys = pad(of_keys, (0, 0, prefix, 0))
        if fused:
            missing = -(width + of_queries.shape[2]) % _ALIGNED
            of_queries, of_keys = pad(of_queries, (0, missing)), pad(of_keys, (0, missing))
            value = pad(value, (0, max(0, width + of_queries.shape[2] - value.shape[-1])))
        return _widened(query, of_queries), _widened(key, of_keys), value


def _widened(heads: Tensor, features: Tensor) -> Tensor:
    """(batch, heads, positions, width) with features (1 or batch, positions, …) behind, the same for all
    heads."""
    shape = (*heads.shape[:3], features.shape[2])
    return torch.cat([heads, features[:, None].to(heads.dtype).expand(shape)], dim=3)


def scores_of(modules: Sequence[BoundModule], token: int, x: Tensor) -> Scores:
    """The terms that modules of the hybrid `token` add to the scores of one attention in this forward.

    Args:
        modules: those at this attention, at least one.
        token: the hybrid's.
        x: (batch, queries, hidden), the attention's input.

    Raises:
        CompositionError: nothing is known of the forward.
    """
    site = modules[0].site
    context = frames.context(token, site.stack)
    if context.lost:
        raise CompositionError(
            f"{modules[0].name} at {site.path} does not know which tokens its queries and keys are: this "
            "family hands nothing on to layers that are recomputed (then train without gradient "
            "checkpointing), or the model calls its layers directly."
        )

    def make(queries: int, keys: int) -> Features:
        call = Call(context, places=places_of(context, x, queries, keys))
        pairs = [module.query_key(x, call) for module in modules]
        for module, pair in zip(modules, pairs, strict=True):
            got = tuple(tuple(features.shape) for features in pair)
            lengths, widths = tuple(s[1] for s in got if len(s) == 3), {s[-1] for s in got}
            if lengths != (queries, keys) or len(widths) > 1:
                raise MethodError(
                    f"{module.name} gives features {got[0]} of queries and {got[1]} of keys at "
                    f"{module.site.path}, where there are {queries} queries and {keys} keys; return "
                    f"(1 or batch, {queries}, width) and (1 or batch, {keys}, width)."
                )
        return side_by_side(pairs)

    return Scores(make)


def side_by_side(pairs: Sequence[Features]) -> Features:
    """Features of several modules as those of one: their terms add."""
    if len(pairs) == 1:
        return pairs[0]
    found = []
    for parts in zip(*pairs, strict=True):
        batch = max(part.shape[0] for part in parts)
        found.append(torch.cat([part.expand(batch, -1, -1) for part in parts], dim=2))
    return found[0], found[1]


def places_of(context: Context, x: Tensor, queries: int, keys: int) -> Places:
    """The text positions of the queries, which are the positions of x, and of the keys of an attention.

    What is behind all known positions is nothing: the empty end of a cache of fixed size. A window keeps the
    last keys.

    Raises:
        CompositionError: a row holds several texts, or the mask does not tell what is padding.
    """
    context.told("Where queries and keys stand in their text is told by")
    if context.again is not None and bool(context.again):
        raise CompositionError(
            "Positions begin again within a row, so that it holds several texts, and what comes to scores "
            "would count their tokens as those of one; give each text a row of its own, without packing, or "
            "use prefix_tuning or lora."
        )
    reserved = context.earlier if context.cached else context.reserved
    if context.text_mask is None:
        tokens = int(reserved.tokens or 0) if context.cached else x.shape[1] - reserved.count
        text = torch.arange(tokens, device=x.device)[None]
    else:
        real = context.text_mask.to(x.device).long()
        text = (real.cumsum(1) - 1).masked_fill(real == 0, -1)
    known = reserved.around(text, text.new_full((len(text), reserved.count), -1))
    first = known.shape[1] - queries if context.cached else 0
    return Places(_part(known, first, queries), _part(known, max(0, known.shape[1] - keys), keys))


def _part(known: Tensor, first: int, length: int) -> Tensor:
    found = known[:, first : first + length]
    return pad(found, (0, length - found.shape[1]), value=-1)
