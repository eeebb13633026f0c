"""Folding a hybrid into the backbone's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import Place
from autopeft.composition import added
from autopeft.errors import CompositionError
from autopeft.graph import NORM_READERS, CompositionGraph, Leaf, Tree, first_unmergeable
from autopeft.hybrid.new_biases import add_biases
from autopeft.hybrid.prediction import ONE_MODEL, several_models
from autopeft.injection import Injection, Part
from autopeft.spec import Site

__all__ = ["fold", "write"]


@dataclass(frozen=True)
class _Live:
    """What is folded: a graph, its modules, and how they are installed on the base model."""

    graph: CompositionGraph
    modules: Mapping[str, nn.Module]
    injection: Injection


def fold(
    graph: CompositionGraph, modules: Mapping[str, nn.Module], injection: Injection
) -> dict[str, Tensor]:
    """What becomes of the base model's tensors, by name, with every module folded in. Changes nothing.

    Weight methods first (they alter W before activations see it), then the output side of each site, whose
    changes add as their deltas do, then its input side. A linear map without a bias that needs one gets it
    (see `new_biases`); where a norm has none (RMSNorm), what is added behind it goes into the biases of the
    maps that read it.

    Raises:
        CompositionError: a module is not mergeable, or sits behind a gate, or adds something that no bias
            can hold.
    """
    live = _Live(graph, modules, injection)
    _check(live)
    base = injection.base
    with torch.no_grad():
        new = {name: patch.new(base.get_parameter(name)) for name, patch in injection.patches().items()}
        shifts = [(site, _merge_site(live, site, new)) for site in graph.sites()]
        for site, shift in shifts:
            if shift is not None:
                _hand_on(live, site, shift, new)
        return {name: value.detach().clone() for name, value in new.items()}


def write(model: PreTrainedModel, base: nn.Module, finished: Mapping[str, Tensor]) -> None:
    """Give a model these tensors of its base model, from which the modules were taken off."""
    own = dict(base.named_parameters())
    with torch.no_grad():
        for name in finished.keys() & own.keys():
            own[name].copy_(finished[name])
    add_biases(model, base, {n: v for n, v in finished.items() if n not in own})


def _check(live: _Live) -> None:
    tree = first_unmergeable(live.graph)
    if tree is None:
        return
    if not isinstance(tree, Leaf):
        raise CompositionError(
            f"{tree.name} depends on the input and cannot be folded into weights; keep the hybrid attached."
        )
    way_out = "keep it attached, or merge a recipe of mergeable methods only"
    if several_models(live.modules[tree.name]):
        way_out = f"it predicts with several models: {ONE_MODEL} or keep it attached"
    raise CompositionError(f"{tree.name} cannot be folded into weights; {way_out}.")


_Pair = tuple[Tensor, Tensor | None]


def _merge_site(live: _Live, site: Site, new: dict[str, Tensor]) -> Tensor | None:
    """Enter what becomes of a site's weight and bias; what is added behind a norm without a bias is
    returned."""
    place = live.injection.places[site.key]
    if site.kind not in ("linear", "norm"):
        return None
    stored, bias, names = _tensors(live, place, new)
    part, bias_part = Part(place.transposed, place.out_slice), Part(out_slice=place.out_slice)
    pair: _Pair = (part.of(stored), None if bias is None else bias_part.of(bias))
    for side in ("output", "input"):
        pair = added([_Folding(live, tree, site, side) for tree in live.graph.trees_at(site)], *pair)
    new[names[0]] = part.put(stored, pair[0])
    if pair[1] is None:
        return None
    if bias is None and site.kind == "norm":
        return pair[1]
    whole = _new_bias(live, place) if bias is None else bias
    new[names[1]] = bias_part.put(whole, pair[1])
    return None


def _new_bias(live: _Live, place: Place) -> Tensor:
    """Zeros for a map without a bias.

    Raises:
        CompositionError: its kind is not known to take one.
    """
    owner = live.injection.base.get_submodule(place.exit)
    if not isinstance(owner, nn.Linear):
        raise CompositionError(
            f"{place.site.path} has no bias, and a {type(owner).__name__} is not known to take one; keep the "
            "hybrid attached."
        )
    return owner.weight.new_zeros(owner.out_features)


def _hand_on(live: _Live, norm: Site, shift: Tensor, new: dict[str, Tensor]) -> None:
    """Fold what is added behind a norm into the biases of the maps that read it, as merged: b + W·shift.

    Raises:
        CompositionError: it is not known that these maps alone read the norm.
    """
    region = norm.name.removesuffix("_norm")
    own = live.graph.spec.find(norm.stack, norm.layer, region)
    places = {
        place.exit: place
        for place in live.injection.places.values()
        if (place.site.stack, place.site.layer) == (norm.stack, norm.layer)
        and place.site.name in NORM_READERS[region]
    }
    if own is None or not own.pre_norm or not places:
        raise CompositionError(
            f"{norm.path} has no bias, and what is added behind it cannot go into the maps that read it, "
            "which are not known on this family; keep the hybrid attached."
        )
    for place in places.values():
        stored, bias, names = _tensors(live, place, new)
        before = _new_bias(live, place) if bias is None else bias
        weight = Part(place.transposed).of(stored)
        new[names[1]] = before + (weight.to(shift.dtype) @ shift).to(before.dtype)


@dataclass(frozen=True)
class _Folding:
    """A tree at one site and side, while it is folded into the weights (see `MergingChild`)."""

    live: _Live
    tree: Tree
    site: Site
    side: str

    def merged(self, weight: Tensor, bias: Tensor | None) -> _Pair | None:
        module: Any = self.live.modules[self.tree.name]
        if isinstance(self.tree, Leaf):
            entry = self.live.graph.entries[self.tree.name]
            acts = "hook" in entry.ways and module.side(self.site) == self.side
            return module.merged(self.site, weight, bias) if acts else None
        children = [replace(self, tree=child) for child in self.tree.children]
        merged: _Pair = module.merged(self.site, children, weight, bias)
        return merged


def _tensors(
    live: _Live, place: Place, new: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None, tuple[str, str]]:
    """The stored weight and bias as merged so far, and their names; a bias may be there that the module does
    not have yet."""
    injection = live.injection
    owner: nn.Module = injection.base.get_submodule(place.exit)
    name = injection.canonical_name(f"{place.exit}.weight")
    weight = new.get(name, injection.base.get_parameter(name))
    bias_name = f"{place.exit}.bias"
    if getattr(owner, "bias", None) is None:
        return weight, new.get(bias_name), (name, bias_name)
    bias_name = injection.canonical_name(bias_name)
    return weight, new.get(bias_name, injection.base.get_parameter(bias_name)), (name, bias_name)
