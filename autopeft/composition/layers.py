"""Layers as places of a decision that all their sites share."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.composition.contract import ChildSpec, by_site
from autopeft.spec import SITE_NAMES, Site

__all__ = ["gated_layers", "layer_of"]

_ORDER = (
    *("embeddings", "q", "k", "v", "qkv", "o", "attention"),
    *("cross_q", "cross_k", "cross_v", "cross_o", "cross_attention"),
    *("up", "gate_proj", "down", "ffn", "layer"),
    *(name for name in SITE_NAMES if name.endswith("norm")),
)
"""Of the sites of a layer, as their modules act: what is added to a region comes behind what is in it."""


def layer_of(site: Site) -> str:
    """The layer of a site, as a name."""
    return f"{site.stack}-{site.layer}"


def gated_layers(children: Sequence[ChildSpec]) -> tuple[dict[str, Site], dict[str, list[str]]]:
    """Layers that several children have: the first site of each, in the order of the forward pass, and the
    children's names."""
    sites, _ = by_site(children)
    first: dict[str, Site] = {}
    for site in sorted(sites.values(), key=lambda site: _ORDER.index(site.name)):
        first.setdefault(layer_of(site), site)
    experts = {at: [c.name for c in children if any(layer_of(s) == at for s in c.sites)] for at in first}
    return {at: site for at, site in first.items() if len(experts[at]) > 1}, experts
