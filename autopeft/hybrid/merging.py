"""Folding a hybrid into the backbone's own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import Place
from autopeft.errors import CompositionError
from autopeft.graph import Leaf, Tree
from autopeft.hybrid.hybrid import Hybrid
from autopeft.injection import Part
from autopeft.spec import Site

__all__ = ["merge"]


def merge(hybrid: Hybrid) -> PreTrainedModel:
    """Fold every module into the weights and detach. Exact up to rounding (1e-5 in fp32).

    Weight methods first (they alter W before activations see it), then the output side of each site, whose
    changes add as their deltas do, then its input side.

    Raises:
        CompositionError: a module is not mergeable, or sits behind a gate; nothing has changed then.
    """
    for tree in hybrid.graph.trees:
        _check(hybrid, tree)
    base = hybrid.injection.base
    with torch.no_grad():
        new = {
            name: patch.new(base.get_parameter(name)) for name, patch in hybrid.injection.patches().items()
        }
        for site in hybrid.graph.sites():
            _merge_site(hybrid, site, new)
        finished = {name: value.detach().clone() for name, value in new.items()}
    hybrid.detach()
    with torch.no_grad():
        for name, value in finished.items():
            base.get_parameter(name).copy_(value)
    return hybrid.model


def _check(hybrid: Hybrid, tree: Tree) -> None:
    if isinstance(tree, Leaf):
        if not hybrid.graph.entries[tree.name].traits.mergeable:
            raise CompositionError(
                f"{tree.name} cannot be folded into weights; keep it attached, or merge a recipe of "
                f"mergeable methods only."
            )
        return
    if tree.kind not in ("sum", "chain"):
        raise CompositionError(
            f"{tree.name} depends on the input and cannot be folded into weights; keep the hybrid attached."
        )
    for child in tree.children:
        _check(hybrid, child)


_Pair = tuple[Tensor, Tensor | None]


def _merge_site(hybrid: Hybrid, site: Site, new: dict[str, Tensor]) -> None:
    place = hybrid.injection.places[site.key]
    if site.kind != "linear":
        return
    stored, bias, names = _tensors(hybrid, place, new)
    part, bias_part = Part(place.transposed, place.out_slice), Part(out_slice=place.out_slice)
    pair: _Pair = (part.of(stored), None if bias is None else bias_part.of(bias))
    for side in ("output", "input"):
        pair = _sum(hybrid, hybrid.graph.trees_at(site), site, side, pair)
    new[names[0]] = part.put(stored, pair[0])
    if bias is not None and pair[1] is not None:
        new[names[1]] = bias_part.put(bias, pair[1])


def _sum(hybrid: Hybrid, trees: tuple[Tree, ...], site: Site, side: str, pair: _Pair) -> _Pair:
    """What deltas that add make of (weight, bias): W + Σ (Wᵢ − W)."""
    weight, bias = pair
    for tree in trees:
        changed = _changed(hybrid, tree, site, side, pair)
        if changed is None:
            continue
        weight = weight + (changed[0] - pair[0])
        if bias is not None and pair[1] is not None and changed[1] is not None:
            bias = bias + (changed[1] - pair[1])
    return weight, bias


def _changed(hybrid: Hybrid, tree: Tree, site: Site, side: str, pair: _Pair) -> _Pair | None:
    """What one tree makes of (weight, bias); a chain's children read what the one before left."""
    if isinstance(tree, Leaf):
        module: Any = hybrid.modules[tree.name]
        if "hook" not in hybrid.graph.entries[tree.name].ways or module.side(site) != side:
            return None
        merged: _Pair = module.merged(site, *pair)
        return merged
    if tree.kind == "sum":
        return _sum(hybrid, tree.children, site, side, pair)
    for child in tree.children:
        pair = _changed(hybrid, child, site, side, pair) or pair
    return pair


def _tensors(
    hybrid: Hybrid, place: Place, new: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None, tuple[str, str]]:
    """The stored weight and bias as merged so far, and their names."""
    injection = hybrid.injection
    owner: nn.Module = injection.base.get_submodule(place.exit)
    name = injection.canonical_name(f"{place.exit}.weight")
    weight = new.get(name, injection.base.get_parameter(name))
    if getattr(owner, "bias", None) is None:
        return weight, None, (name, "")
    bias_name = injection.canonical_name(f"{place.exit}.bias")
    return weight, new.get(bias_name, injection.base.get_parameter(bias_name)), (name, bias_name)
