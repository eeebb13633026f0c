"""A hybrid as changes B·A of linear maps: exact factors where its changes are changes of weights.

ΔW of a map is that of its merged weight. Where LoRAs and their like alone act there, their own factors are
put side by side; else ΔW is taken apart by a singular value decomposition, cut where rounding begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autopeft.backbones import Place
from autopeft.composition import get_composition
from autopeft.errors import AutoPEFTError
from autopeft.graph import ONE_MODEL, Leaf, Tree
from autopeft.hybrid.merging import Rest
from autopeft.hybrid.modules import deployed_modules
from autopeft.hybrid.prediction import several_models

if TYPE_CHECKING:
    from autopeft.hybrid import Hybrid

__all__ = ["Factors", "MapChanges", "NotServable", "factors_of", "map_changes", "weighted_factors"]


class NotServable(AutoPEFTError):  # noqa: N818
    """This hybrid cannot be written in the format that was asked for; the message says why."""


@dataclass(frozen=True)
class Factors:
    """ΔW = b·a with a (rank, in) and b (out, rank), the columns of `b` by falling weight."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return len(self.a)

    def cut(self, rank: int) -> Factors:
        """The first `rank` ranks."""
        return Factors(self.a[:rank], self.b[:, :rank])

    def product(self) -> Tensor:
        """ΔW, (out, in)."""
        return self.b @ self.a


@dataclass(frozen=True)
class MapChanges:
    """What a hybrid does to linear maps. Paths and names are the base model's.

    Attributes:
        places: one place of each map by its path.
        deltas: ΔW (out, in) in fp32 by path, of maps whose weight changes.
        exact: the factors of those that are LoRAs as they are.
        noise: by path, the size of a singular value of ΔW below which it is rounding.
        biases: what becomes of biases, by name.
        rest: what no weight can say, by path.
    """

    places: Mapping[str, Place]
    deltas: Mapping[str, Tensor]
    exact: Mapping[str, Factors]
    noise: Mapping[str, float]
    biases: Mapping[str, Tensor]
    rest: Mapping[str, Rest]

    def paths(self) -> list[str]:
        """The maps that anything acts on, in the model's order."""
        return [path for path in self.places if path in self.deltas or path in self.rest]


@torch.no_grad()
def map_changes(hybrid: Hybrid) -> MapChanges:
    """What a hybrid does to linear maps, and what of it their weights cannot say.

    Raises:
        NotServable: it predicts with several models, or changes a tensor that belongs to no linear map.
        CompositionError: something acts where no linear map could take it.
    """
    several = next((name for name, module in hybrid.modules.items() if several_models(module)), None)
    if several is not None:
        raise NotServable(f"{several} predicts with several models and a LoRA is one: {ONE_MODEL}.")
    changes, injection = hybrid.weight_changes(), hybrid.injection
    places = {p.exit: p for p in injection.places.values() if p.site.kind == "linear"}
    names = injection.canonical_names()
    maps = {names[f"{path}.weight"]: path for path in places}
    deltas: dict[str, Tensor] = {}
    noise: dict[str, float] = {}
    biases: dict[str, Tensor] = {}
    for name, new in changes.tensors.items():
        before = injection.base.get_parameter(name)
        delta = new.float() - before.float()
        if not delta.any():
            continue
        if name in maps:
            path = maps[name]
            deltas[path] = delta.t() if places[path].transposed else delta
            noise[path] = _rounding(new)
        elif name.endswith(".bias"):
            biases[name] = new
        else:
            raise NotServable(
                f"This hybrid changes {name}, which belongs to no linear map of a layer, and a LoRA holds "
                "changes of these alone; export it merged (--as merged), or search without what does this."
            )
    patched = {maps[name] for name in injection.patches() if name in maps}
    alone = [path for path in deltas if path not in changes.rest and path not in patched]
    exact = {path: found for path in alone if (found := _own_factors(hybrid, path)) is not None}
    return MapChanges(places, deltas, exact, noise, biases, changes.rest)


def _rounding(weight: Tensor) -> float:
    """The largest singular value that rounding of W + ΔW (given) may leave in ΔW: that of a matrix of
    independent errors, √out + √in times the size of one."""
    error = float(weight.float().pow(2).mean().sqrt()) * torch.finfo(torch.float32).eps
    return error * (math.sqrt(weight.shape[0]) + math.sqrt(weight.shape[1]))


def _own_factors(hybrid: Hybrid, path: str) -> Factors | None:
    """The factors of the LoRAs that act at a map's sites, side by side; `None` where something else does.
    What alters the tensor of the map itself, such as a mask, is at no site."""
    sites = [place.site for place in hybrid.injection.places.values() if place.exit == path]
    acting = [site for site in sites if hybrid.graph.trees_at(site)]
    whole = all(hybrid.injection.places[site.key].out_slice is None for site in acting)
    if len(acting) != 1 or not whole:
        return None
    pairs: list[tuple[Tensor, Tensor]] = []
    deployed: dict[str, Any] = deployed_modules(hybrid.modules)
    for tree in hybrid.graph.trees_at(acting[0]):
        for name in _side_by_side(tree):
            module = None if name is None else deployed[name]
            if module is None or not hasattr(module, "as_lora"):
                return None
            if hybrid.graph.entries[str(name)].ways != {"hook"}:  # DoRA replaces the direction of W
                return None
            a, b, scale = module.as_lora(acting[0])
            pairs.append((a.float(), b.float() * float(scale)))
    a = torch.cat([a for a, _ in pairs])
    return Factors(a, torch.cat([b for _, b in pairs], dim=1)) if len(a) else None


def _side_by_side(tree: Tree) -> Iterator[str | None]:
    """The entries of a tree whose deltas add; `None` for one whose deltas do not."""
    if isinstance(tree, Leaf):
        yield tree.name
    elif get_composition(tree.kind).traits.additive:
        for child in tree.children:
            yield from _side_by_side(child)
    else:
        yield None


def factors_of(delta: Tensor, noise: float) -> Factors:
    """The factors of ΔW (out, in), with the singular values above `noise` and the decomposition's own."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    own = torch.finfo(s.dtype).eps * float(s[0]) * math.sqrt(max(delta.shape))
    rank = max(1, int((s > noise + own).sum()))
    root = s[:rank].sqrt()
    return Factors(root[:, None] * vh[:rank], u[:, :rank] * root)


def weighted_factors(delta: Tensor, second: Tensor, ranks: int) -> Factors:
    """The factors of ΔW whose first r ranks, for every r, come nearest to ΔW·x in the mean square.

    With the inputs' second moment C = L·Lᵀ they are those of the singular value decomposition of ΔW·L
    (reduced-rank regression).

    Args:
        delta: ΔW (out, in).
        second: C (in, in), positive definite, in fp64.
        ranks: how many to keep.
    """
    root = torch.linalg.cholesky(second).to(delta.dtype)
    u, s, vh = torch.linalg.svd(delta @ root, full_matrices=False)
    rank = min(ranks, len(s))
    a = torch.linalg.solve_triangular(root, vh[:rank], upper=False, left=False)
    size = s[:rank].sqrt()
    return Factors(size[:, None] * a, u[:, :rank] * size)
