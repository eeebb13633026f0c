"""Folding a hybrid into the backbone's own weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import Place
from autopeft.composition import Value, added, nested
from autopeft.errors import CompositionError
from autopeft.graph import (
    ONE_MODEL,
    REGION_ENDS,
    CompositionGraph,
    Leaf,
    Tree,
    first_unmergeable,
    readers_of,
)
from autopeft.hybrid.prediction import several_models
from autopeft.injection import Injection, Members, Part
from autopeft.spec import Site

__all__ = ["Rest", "WeightChanges", "config_describes", "fold", "fold_weights", "write"]

_log = logging.getLogger("autopeft")
_FLAGS = ("attention_bias", "mlp_bias")  # of configs whose linear maps may have biases (Llama)


@dataclass(frozen=True)
class Rest:
    """An effect at a linear map, or in the region that ends with it, that no change of its weight gives.

    Attributes:
        what: the entry or composition, and where it is.
        seen: path of the module behind which its effect is whole: the map, or the region's exit.
    """

    what: str
    seen: str


@dataclass(frozen=True)
class WeightChanges:
    """A hybrid as changes of tensors, as far as they can say it. Paths and names are the base model's.

    Attributes:
        tensors: what becomes of tensors, by name, in fp32 where they are stored in less.
        rest: by the path of a linear map, what is not in them.
    """

    tensors: Mapping[str, Tensor]
    rest: Mapping[str, Rest]


@dataclass(frozen=True)
class _Live:
    """What is folded: a graph, its modules, and how they are installed on the base model. `fine` reads the
    base model's tensors in fp32 at least."""

    graph: CompositionGraph
    modules: Mapping[str, nn.Module]
    injection: Injection
    fine: bool = False

    def read(self, name: str) -> Tensor:
        """A tensor of the base model."""
        found: Tensor = self.injection.base.get_parameter(name)
        return found.float() if self.fine and found.dtype.itemsize < 4 else found


def fold(
    graph: CompositionGraph, modules: Mapping[str, nn.Module], injection: Injection
) -> dict[str, Tensor]:
    """The base model's tensors, by name, with every module folded in. Changes nothing.

    Weight methods first (they alter W before activations see it), then the output side of each site, whose
    changes add as their deltas do, then its input side. A linear map without a bias that needs one gets it
    (see `write`); where a norm has none (RMSNorm), what is added behind it goes into the biases of the
    maps that read it.

    Raises:
        CompositionError: a module is not mergeable, or sits behind a gate, or adds something that no bias
            can hold.
    """
    live = _Live(graph, modules, injection)
    tree = first_unmergeable(graph)
    if tree is not None and not isinstance(tree, Leaf):
        raise CompositionError(
            f"{tree.name} depends on the input and cannot be folded into weights; keep the hybrid attached."
        )
    if tree is not None:
        way_out = "keep it attached, or merge a recipe of mergeable methods only"
        if several_models(modules[tree.name]):
            way_out = f"it predicts with several models: {ONE_MODEL} or keep it attached"
        raise CompositionError(f"{tree.name} cannot be folded into weights; {way_out}.")
    with torch.no_grad(), _evaluated(modules):
        new = {name: patch.new(live.read(name)) for name, patch in injection.patches().items()}
        shifts: list[tuple[Site, Tensor]] = []  # what is added behind norms without a bias
        for site in injection.sites():
            if site.kind not in ("linear", "norm"):
                continue
            map_ = _merged(live, site, graph.trees_at(site), new)
            new[map_.names[0]] = map_.whole_weight
            bias = map_.pair[1]
            if bias is not None and map_.bias is None and site.kind == "norm":
                shifts.append((site, bias))
            elif bias is not None:
                whole = _new_bias(live, injection.places[site.key]) if map_.bias is None else map_.bias
                new[map_.names[1]] = map_.bias_part.put(whole, bias)
        # A shift behind a norm goes into the biases of the maps that read it, as merged: b + W·shift.
        for norm, shift in shifts:
            known, readers = injection.places, readers_of(graph.spec, norm)
            places = {known[site.key].exit: known[site.key] for site in readers if site.key in known}
            if not places or any(site.key not in known for site in readers):
                raise CompositionError(
                    f"{norm.path} has no bias, and what is added behind it cannot go into the maps that read "
                    "it, which are not known on this family; keep the hybrid attached."
                )
            for place in places.values():
                stored, own_bias, names = _tensors(live, place, new)
                before = _new_bias(live, place) if own_bias is None else own_bias
                weight = Part(place.transposed).of(stored)
                new[names[1]] = before + (weight.to(shift.dtype) @ shift).to(before.dtype)
        return {name: value.detach().clone() for name, value in new.items()}


def fold_weights(
    graph: CompositionGraph, modules: Mapping[str, nn.Module], injection: Injection
) -> WeightChanges:
    """A hybrid as changes of the base model's own tensors, without new biases, and the linear maps at which
    something else is left. Changes nothing.

    What acts on a region is left for the map that ends it, and what acts on a norm for the maps that read it.

    Raises:
        CompositionError: something acts where no linear map could take it, on logits for example.
    """
    on_logits = [name for name, entry in graph.entries.items() if "logits" in entry.ways]
    if on_logits:
        raise CompositionError(
            f"{on_logits[0]} acts on logits, and no tensor of the backbone could take that; keep the hybrid "
            "attached."
        )
    live = _Live(graph, modules, injection, fine=True)
    rest: dict[str, Rest] = {}
    with torch.no_grad(), _evaluated(modules):
        new = {name: patch.new(live.read(name)) for name, patch in injection.patches().items()}
        for site in injection.sites():
            trees = _hooked(live, site)
            if not trees:
                continue
            if site.kind != "linear":
                what = f"{trees[0].name} at {site.path}"
                rest.update({path: Rest(what, seen) for path, seen in _ends(live, site)})
                continue
            path = injection.places[site.key].exit
            merged = [tree for tree in trees if first_unmergeable(graph, [tree]) is None]
            left = next((tree for tree in trees if tree not in merged), None)
            if left is not None:
                rest[path] = Rest(f"{left.name} at {site.path}", path)
            map_ = _merged(live, site, merged, new)
            new[map_.names[0]] = map_.whole_weight
            if map_.pair[1] is not None and map_.bias is None:
                rest[path] = Rest(f"{merged[0].name} at {site.path}, which has no bias", path)
            elif map_.pair[1] is not None and map_.bias is not None:
                new[map_.names[1]] = map_.bias_part.put(map_.bias, map_.pair[1])
        return WeightChanges({name: value.detach().clone() for name, value in new.items()}, rest)


@contextmanager
def _evaluated(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within, modules act as they are evaluated: what they draw while training is not folded in."""
    flags = [(part, part.training) for module in modules.values() for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def _hooked(live: _Live, site: Site) -> list[Tree]:
    """The trees at a site that act on activations, keys or values."""
    graph = live.graph
    return [t for t in graph.trees_at(site) if any(e.ways != {"weight"} for e in graph.leaves(t))]


def _ends(live: _Live, site: Site) -> list[tuple[str, str]]:
    """The linear maps that can take what acts on a region or a norm, each with where its effect is whole.

    Raises:
        CompositionError: there are none.
    """
    places, spec = live.injection.places, live.graph.spec
    own = places[site.key]
    if site.kind == "region" and site.name in REGION_ENDS:
        last = spec.find(site.stack, site.layer, REGION_ENDS[site.name])
        if last is not None:
            return [(places[last.key].exit, own.exit)]
    readers = readers_of(spec, site) if site.kind == "norm" else ()
    if readers:
        return [(places[s.key].exit, places[s.key].exit) for s in readers]
    raise CompositionError(
        f"{_hooked(live, site)[0].name} acts at {site.path}, and no linear map is known that could take it."
    )


def write(model: PreTrainedModel, base: nn.Module, finished: Mapping[str, Tensor]) -> None:
    """Give a model these tensors of its base model, from which the modules were taken off."""
    own = dict(base.named_parameters())
    with torch.no_grad():
        for name in finished.keys() & own.keys():
            own[name].copy_(finished[name])
    _add_biases(model, base, {n: v for n, v in finished.items() if n not in own})


_Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class _Merged:
    """A site's map or norm with trees folded in.

    Attributes:
        stored, bias: the whole tensors before.
        names: theirs.
        pair: the site's weight and bias afterwards.
    """

    stored: Tensor
    bias: Tensor | None
    names: tuple[str, str]
    part: Part
    bias_part: Part
    pair: _Pair

    @property
    def whole_weight(self) -> Tensor:
        """The stored weight with the site's part replaced."""
        return self.part.put(self.stored, self.pair[0])


def _merged(live: _Live, site: Site, trees: Sequence[Tree], new: Mapping[str, Tensor]) -> _Merged:
    place = live.injection.places[site.key]
    stored, bias, names = _tensors(live, place, new)
    part, bias_part = Part(place.transposed, place.out_slice), Part(out_slice=place.out_slice)
    own = part.of(stored)
    # One plus a small gain is rounded in 16 bits, and would stay so when the one is taken off again.
    own = own.float() + place.offset if place.offset else own
    pair: _Pair = (own, None if bias is None else bias_part.of(bias))
    for side in ("output", "input"):
        pair = added([_Folding(live, tree, site, side) for tree in trees], *pair)
    pair = (pair[0] - place.offset, pair[1]) if place.offset else pair
    return _Merged(stored, bias, names, part, bias_part, pair)


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


@dataclass(frozen=True)
class _Folding:
    """A tree at one site and side, while it is folded into the weights (see `MergingChild`)."""

    live: _Live
    tree: Tree
    site: Site
    side: str
    value: Value | None = None

    def under(self, value: Value) -> _Folding:
        return replace(self, value=nested(self.value, value))

    def merged(self, weight: Tensor, bias: Tensor | None) -> _Pair | None:
        module: Any = self.live.modules[self.tree.name]
        if isinstance(self.tree, Leaf):
            entry = self.live.graph.entries[self.tree.name]
            acts = "hook" in entry.ways and module.side(self.site) == self.side
            if self.value is None or not acts:
                return module.merged(self.site, weight, bias) if acts else None
            changed: _Pair = Members(module, self.site).call(self.value, "merged", self.site, weight, bias)
            return changed
        children = [replace(self, tree=child) for child in self.tree.children]
        merged: _Pair = module.merged(self.site, children, weight, bias)
        return merged


def _tensors(
    live: _Live, place: Place, new: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None, tuple[str, str]]:
    """The stored weight and bias as merged so far, and their names; a bias may be there that the module does
    not have yet."""
    injection = live.injection
    owner: nn.Module = injection.base.get_submodule(place.exit)
    names = injection.canonical_names()
    name = names[f"{place.exit}.weight"]
    weight = new[name] if name in new else live.read(name)
    bias_name = f"{place.exit}.bias"
    if getattr(owner, "bias", None) is None:
        return weight, new.get(bias_name), (name, bias_name)
    bias_name = names[bias_name]
    bias = new[bias_name] if bias_name in new else live.read(bias_name)
    return weight, bias, (name, bias_name)


# Biases of linear maps that have none
# ----------------------------------------------------------------------------------------------------------


def _add_biases(model: PreTrainedModel, base: nn.Module, biases: Mapping[str, Tensor]) -> None:
    """Give linear maps of the base model biases, by name (`layers.0.self_attn.q_proj.bias`).

    The config is made to say so, so that the model can be saved and loaded again: where a flag of it brings
    biases to other maps too, those are zero. Where no flag does, a warning is logged.
    """
    if not biases:
        return
    for name, value in biases.items():
        _put_bias(base, name, value)
    found = _flags_of(model)
    if found is None:
        _log.warning(
            "Merging gave %s biases (%s, …) of which its config cannot know: the model computes with them, "
            "but loading it after save_pretrained drops them. Save the hybrid itself (Hybrid.save), which "
            "keeps everything.",
            type(model).__name__,
            next(iter(biases)),
        )
        return
    flags, others = found
    for flag in flags:
        setattr(model.config, flag, True)
    for name in others:
        weight = model.get_parameter(f"{name.removesuffix('bias')}weight")
        _put_bias(model, name, weight.new_zeros(weight.shape[0]))


def config_describes(model: PreTrainedModel) -> bool:
    """Whether a model that is made from this one's config has all its parameters."""
    found = _flags_of(model)
    return found is not None and not found[0]


def _put_bias(model: nn.Module, name: str, value: Tensor) -> None:
    """Register a bias, like the weight beside it in dtype, device and whether it trains."""
    owner = model.get_submodule(name.rpartition(".")[0])
    weight = owner.get_parameter("weight")
    owner.bias = nn.Parameter(value.to(weight.device, weight.dtype), requires_grad=weight.requires_grad)


def _flags_of(model: PreTrainedModel) -> tuple[tuple[str, ...], set[str]] | None:
    """The fewest flags with which the config describes the model, and the biases that these bring besides."""
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    off = [flag for flag in _FLAGS if getattr(model.config, flag, None) is False]
    for flags in (f for n in range(len(off) + 1) for f in combinations(off, n)):
        config = copy.deepcopy(model.config)
        for flag in flags:
            setattr(config, flag, True)
        with torch.device("meta"):
            described = type(model)(config)
        names = {name for name, _ in described.named_parameters(remove_duplicate=False)}
        if own <= names and all(name.endswith(".bias") for name in names - own):
            return flags, names - own
    return None
