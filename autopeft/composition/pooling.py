"""Means over the real positions of a sequence, for compositions that depend on it as a whole."""

from __future__ import annotations

from torch import Tensor

from autopeft.errors import CompositionError
from autopeft.method import Call
from autopeft.spec import Site

__all__ = ["is_of_the_source", "mean_over_positions", "real_positions"]

_OF_THE_SOURCE = ("cross_k", "cross_v")


def is_of_the_source(site: Site) -> bool:
    """Whether a site of a decoder reads what its encoder yields."""
    return site.name in _OF_THE_SOURCE


def real_positions(site: Site, call: Call) -> Tensor | None:
    """The mask (batch, positions) of what a site reads, 0 for padding; `None` where there is none."""
    return call.context.source_mask if is_of_the_source(site) else call.context.mask


def mean_over_positions(values: Tensor, site: Site, call: Call, what: str, *, masked: bool = True) -> Tensor:
    """(batch, 1, k), from values (batch, positions, k); without `masked` padding counts too.

    Raises:
        CompositionError: keys and values come from a cache, so that earlier positions cannot be pooled; or
            the sequence is not there as a whole; or the layer is recomputed without its context.
    """
    if call.context.lost:
        raise CompositionError(
            f"{what} at {site.path} does not know its forward: this family hands nothing on to layers that "
            "are recomputed (then train without gradient checkpointing), or the model calls its layers "
            "directly (then take modules that need no composition)."
        )
    if call.context.cached:
        raise CompositionError(
            f"{what} pools over the whole sequence, but a decoding step with a cache sees only the new "
            "token; generate with use_cache=False."
        )
    mask = real_positions(site, call)
    length = values.shape[1] if mask is None else mask.shape[1]
    if values.ndim != 3 or values.shape[1] != length:
        raise CompositionError(
            f"{what} at {site.path} pools over (batch, {length}, width), but this model hands on "
            f"{(*values.shape[:-1], site.in_features)}, in chunks or flattened; take another site."
        )
    if masked and mask is not None:
        weights = mask.to(values.dtype).unsqueeze(-1)
        return (values * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    return values.mean(1, keepdim=True)
