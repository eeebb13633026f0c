"""Places: where each site is on a given (live or meta) base model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autopeft.backbones.generic import generic_map
from autopeft.backbones.maps import FAMILIES, FamilyMap, Linear, Norm, Region, Slice, StackMap, map_of
from autopeft.errors import SiteError
from autopeft.spec import Site

__all__ = ["Layout", "Place", "StackPlaces", "base_model_of", "embedded_words", "layout_of"]


@dataclass(frozen=True)
class Place:
    """A site on a live model; module paths are relative to the base model.

    Attributes:
        site: the site.
        entry: path of the module whose input is x.
        exit: path of the module whose output is y.
        out_slice: for a part of a fused projection, which of its output features.
        transposed: the weight is stored (in, out), as Conv1D does.
        norm: path of the region's norm.
        attends: `entry` dispatches to an attention function.
        flat: x and y are (batch · positions, width).
        offset: what a norm adds to its weight before it scales by it.
        positions: it is called for the positions of the sequence alone.
    """

    site: Site
    entry: str
    exit: str
    out_slice: Slice | None = None
    transposed: bool = False
    norm: str | None = None
    attends: bool = False
    flat: bool = False
    offset: float = 0.0
    positions: bool = True


@dataclass(frozen=True)
class StackPlaces:
    """A stack on a live model.

    Attributes:
        map: its row of the family's map; the root takes the public inputs.
        layers: path of each layer.
        hidden: width of the states between layers.
        places: every place, in order of depth.
        embeddings: path of the module around the table of its embeddings that adds positions and normalises,
            or of the table where that lies at the root by itself; `None` where no embeddings are known.
        runs: how often each layer runs in a forward, one run after the other.
        blends: what its first layer read is blended with what that yields.
    """

    map: StackMap
    layers: tuple[str, ...]
    hidden: int
    places: tuple[Place, ...]
    embeddings: str | None = None
    runs: int = 1
    blends: bool = False

    @property
    def embeds_at_root(self) -> bool:
        """Whether the table of its embeddings, and so its positions and their norm, lie beside the layers in
        a root of the stack's own (BART); the norm behind the layers may lie there too."""
        root, embeddings = self.map.root, self.map.embeddings
        return bool(root) and embeddings is not None and embeddings.rpartition(".")[0] == root


@dataclass(frozen=True)
class Layout:
    """Everything found on a base model."""

    family: FamilyMap
    stacks: tuple[StackPlaces, ...]
    generic: bool

    def places(self) -> Iterator[Place]:
        for stack in self.stacks:
            yield from stack.places

    def padding_id(self, config: PreTrainedConfig) -> int | None:
        """The id of padding, as the model's embeddings count positions by it."""
        own = self.family.padding_id
        found = getattr(config, "pad_token_id", None) if own is None else own
        return None if found is None else int(found)


def base_model_of(model: PreTrainedModel) -> PreTrainedModel:
    """The transformer without its task head (`model` itself where there is none)."""
    return cast(PreTrainedModel, model.base_model)


def embedded_words(base: PreTrainedModel) -> Tensor:
    """What the table of embeddings yields for each word, (words, width): Gemma's and BART's scale it."""
    table = base.get_input_embeddings()
    weight = cast(Tensor, table.weight).detach()
    scale = getattr(table, "embed_scale", 1.0)
    return weight if isinstance(scale, float) and scale == 1 else weight * scale


def _get(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split(".") if path else []:
        child = module._modules.get(part)
        if child is None:
            return None
        module = child
    return module


def _linear_shape(module: nn.Module) -> tuple[int, int, bool]:
    """(in, out, transposed) of a linear map.

    Raises:
        SiteError: the module has no two-dimensional weight.
    """
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        raise SiteError(
            f"{type(module).__name__} is not a linear map; the site map of this family is out of date."
        )
    transposed = isinstance(module, Conv1D)
    out_features, in_features = weight.shape[::-1] if transposed else weight.shape
    return int(in_features), int(out_features), transposed


def _linear_place(
    stack: StackMap, index: int, name: str, entry: Linear, layer: nn.Module, path: str
) -> Place | None:
    where = next((p for p in (entry.path, entry.instead) if p and _get(layer, p) is not None), None)
    if where is None:
        return None
    module = cast(nn.Module, _get(layer, where))
    n_in, n_out, transposed = _linear_shape(module)
    width, part = n_out // entry.parts, entry.features
    if part is None and entry.parts > 1:
        part = Slice(entry.part * width, width)
    width = width if part is None else part.size
    bias = getattr(module, "bias", None) is not None
    site = Site(stack.name, index, name, "linear", n_in, width, bias=bias, fused=part is not None)
    full = f"{path}.{where}"
    return Place(site, full, full, out_slice=part, transposed=transposed, positions=entry.positions)


def _norm_place(
    stack: StackMap, index: int, name: str, entry: Norm, layer: nn.Module, path: str
) -> Place | None:
    module = _get(layer, entry.path)
    weight = getattr(module, "weight", None)
    if module is None or weight is None:
        return None
    width = int(weight.numel())
    site = Site(stack.name, index, name, "norm", width, width, bias=getattr(module, "bias", None) is not None)
    full = f"{path}.{entry.path}"
    return Place(site, full, full, offset=entry.offset)


def _region_place(
    stack: StackMap, index: int, name: str, region: Region, layer: nn.Module, path: str, hidden: int, kv: int
) -> Place | None:
    if _get(layer, region.entry) is None or _get(layer, region.exit) is None:
        return None
    pre = None if region.order is None else region.order == "pre"
    site = Site(
        stack.name,
        index,
        name,
        "region",
        hidden,
        hidden,
        kv_features=kv,
        pre_norm=pre,
        multiplier=region.multiplier,
    )

    def full(inner: str) -> str:
        return f"{path}.{inner}" if inner else path

    norm = full(region.norm) if region.norm is not None and _get(layer, region.norm) is not None else None
    return Place(
        site, full(region.entry), full(region.exit), norm=norm, attends=region.attends, flat=region.flat
    )


def _layer_places(stack: StackMap, index: int, layer: nn.Module, path: str, hidden: int) -> list[Place]:
    linears = {
        name: linear
        for name, entry in stack.sites.items()
        if isinstance(entry, Linear)
        and (linear := _linear_place(stack, index, name, entry, layer, path)) is not None
    }
    found: list[Place] = []
    for name, entry in stack.sites.items():
        if isinstance(entry, Linear):
            place = linears.get(name)
        elif isinstance(entry, Norm):
            place = _norm_place(stack, index, name, entry, layer, path)
        else:
            kv = _key_width(name, entry, linears) if entry.attends else 0
            place = _region_place(stack, index, name, entry, layer, path, hidden, kv)
        if place is not None:
            found.append(place)
    return found


def _key_width(name: str, region: Region, linears: dict[str, Place]) -> int:
    """Width of the keys of all heads together, 0 where no site tells it."""
    if region.thirds and "qkv" in linears:
        return linears["qkv"].site.out_features // 3
    key = "cross_k" if name == "cross_attention" else "k"
    return linears[key].site.out_features if key in linears else 0


def _embedding_width(module: nn.Module, hidden: int) -> int:
    weight = getattr(module, "weight", None)
    return int(weight.shape[1]) if weight is not None and weight.ndim == 2 else hidden


def _stack_places(base: PreTrainedModel, stack: StackMap, hidden: int) -> StackPlaces | None:
    layers = _get(base, stack.layers)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        return None
    places: list[Place] = []
    if stack.embeddings is not None:
        embeddings = _get(base, stack.embeddings)
        if embeddings is None:
            return None
        width = _embedding_width(embeddings, hidden)
        site = Site(stack.name, None, "embeddings", "embeddings", width, width)
        places.append(Place(site, stack.embeddings, stack.embeddings))
    paths = tuple(f"{stack.layers}.{i}" for i in range(len(layers)))
    for i, path in enumerate(paths):
        _require_single(base, stack, layers[i])
        places += _layer_places(stack, i, layers[i], path, hidden)
    runs = int(base.config.num_hidden_layers) // len(layers) if stack.repeats else 1
    blends = stack.blends is not None and _get(base, stack.blends) is not None
    return StackPlaces(stack, paths, hidden, tuple(places), _embeddings_module(stack), runs, blends)


def _require_single(base: PreTrainedModel, stack: StackMap, layer: nn.Module) -> None:
    inside = None if stack.single is None else _get(layer, stack.single)
    if isinstance(inside, nn.ModuleList) and len(inside) > 1:
        raise SiteError(
            f"A layer of this {base.config.model_type!r} holds {len(inside)} layers that run in turn, over "
            "and over, so that none of them has a place of its own; take a model whose layers hold one."
        )


def _embeddings_module(stack: StackMap) -> str | None:
    """See `StackPlaces.embeddings`."""
    if stack.embeddings is None:
        return None
    around = stack.embeddings.rpartition(".")[0]
    # A module that holds the layers too (OPT's decoder) is more than embeddings.
    alone = around not in ("", stack.root) and not stack.layers.startswith(f"{around}.")
    return around if alone else stack.embeddings


def layout_of(base: PreTrainedModel) -> Layout:
    """Find every site of a base model, by its family's map or else by the generic resolver.

    Raises:
        SiteError: neither finds a list of layers with the places it needs; the message names what was looked
        for.
    """
    family = map_of(base.config)
    generic = family is None
    if family is None:
        family = generic_map(base)
    hidden = int(base.config.hidden_size)
    stacks = [s for m in family.stacks if (s := _stack_places(base, m, hidden)) is not None]
    if not stacks:
        raise SiteError(
            f"The site map of {base.config.model_type!r} finds no layers on {type(base).__name__}; families "
            f"with a map: "
            f"{', '.join(sorted(FAMILIES))}."
        )
    return Layout(family, tuple(stacks), generic)
