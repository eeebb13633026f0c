"""Means over the real positions of a sequence, for compositions that depend on it as a whole."""

from __future__ import annotations

from torch import Tensor

from autopeft.errors import CompositionError
from autopeft.method import Call
from autopeft.nn import summarised
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
            the sequence is not there as a whole; or the layer is recomputed without its context; or a row
            holds several texts; or the mask does not tell padding, which is not to count.
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
    again = None if is_of_the_source(site) else call.context.again
    if again is not None and bool(again):
        raise CompositionError(
            f"{what} at {site.path} takes the mean over a row, but positions begin again within it, so that "
            "it holds several texts; give each text a row of its own, without packing, or take modules that "
            "need no composition."
        )
    mask = real_positions(site, call)
    if masked:
        need = f"{what} at {site.path} is told which positions are padding by"
        mask = call.context.told(need, source=is_of_the_source(site))
    length = values.shape[1] if mask is None else mask.shape[1]
    if values.ndim != 3 or values.shape[1] != length:
        raise CompositionError(
            f"{what} at {site.path} pools over (batch, {length}, width), but this model hands on "
            f"{(*values.shape[:-1], site.in_features)}, in chunks or flattened; take another site."
        )
    return summarised(values, mask if masked else None, "mean")[:, None]
