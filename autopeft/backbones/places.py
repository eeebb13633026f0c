"""Places: where each site is on a given (live or meta) base model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autopeft.backbones.generic import generic_map
from autopeft.backbones.maps import FAMILIES, FamilyMap, Linear, Norm, Slice, StackMap
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
    """The output of the table of embeddings for each word, (words, width): Gemma's and BART's scale it."""
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


def _layer_places(stack: StackMap, index: int, layer: nn.Module, path: str, hidden: int) -> list[Place]:
    """The places of a layer that this model has.

    Raises:
        SiteError: a linear map has no two-dimensional weight.
    """
    linears: dict[str, Place] = {}
    for name, entry in stack.sites.items():
        if not isinstance(entry, Linear):
            continue
        where = next((p for p in (entry.path, entry.instead) if p and _get(layer, p) is not None), None)
        if where is None:
            continue
        module = cast(nn.Module, _get(layer, where))
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2:
            raise SiteError(
                f"{type(module).__name__} is not a linear map; the site map of this family is out of date."
            )
        transposed = isinstance(module, Conv1D)
        n_out, n_in = map(int, weight.shape[::-1] if transposed else weight.shape)
        width, part = n_out // entry.parts, entry.features
        if part is None and entry.parts > 1:
            part = Slice(entry.part * width, width)
        width = width if part is None else part.size
        bias = getattr(module, "bias", None) is not None
        site = Site(stack.name, index, name, "linear", n_in, width, bias=bias, fused=part is not None)
        full = f"{path}.{where}"
        linears[name] = Place(
            site, full, full, out_slice=part, transposed=transposed, positions=entry.positions
        )

    found: list[Place] = []
    for name, entry in stack.sites.items():
        if isinstance(entry, Linear):
            found += [linears[name]] if name in linears else []
        elif isinstance(entry, Norm):
            norm = _get(layer, entry.path)
            scale = getattr(norm, "weight", None)
            if norm is not None and scale is not None:
                width, bias = int(scale.numel()), getattr(norm, "bias", None) is not None
                site = Site(stack.name, index, name, "norm", width, width, bias=bias)
                full = f"{path}.{entry.path}"
                found.append(Place(site, full, full, offset=entry.offset))
        elif _get(layer, entry.entry) is not None and _get(layer, entry.exit) is not None:
            keys = 0  # width of the keys of all heads together, 0 where no site tells it
            key = "cross_k" if name == "cross_attention" else "k"
            if entry.attends and entry.thirds and "qkv" in linears:
                keys = linears["qkv"].site.out_features // 3
            elif entry.attends and key in linears:
                keys = linears[key].site.out_features
            site = Site(
                stack.name,
                index,
                name,
                "region",
                hidden,
                hidden,
                kv_features=keys,
                pre_norm=None if entry.order is None else entry.order == "pre",
                multiplier=entry.multiplier,
                whole=entry.entry == entry.exit,
            )
            # A region may be the whole layer, whose own path is empty.
            entered, left = (f"{path}.{inner}" if inner else path for inner in (entry.entry, entry.exit))
            has_norm = entry.norm is not None and _get(layer, entry.norm) is not None
            found.append(
                Place(
                    site,
                    entered,
                    left,
                    norm=f"{path}.{entry.norm}" if has_norm else None,
                    attends=entry.attends,
                    flat=entry.flat,
                )
            )
    return found


def layout_of(base: PreTrainedModel) -> Layout:
    """Find every site of a base model, by its family's map or else by the generic resolver.

    Raises:
        SiteError: neither finds a list of layers with the places it needs, and the message names what was
            looked for; or the layers are not such as the family's map can tell.
    """
    known = FAMILIES.get(base.config.model_type)
    if known is None:
        family = generic_map(base)
    else:
        family = known if isinstance(known, FamilyMap) else known(base.config)
    hidden = int(base.config.hidden_size)
    stacks: list[StackPlaces] = []
    for stack in family.stacks:
        layers = _get(base, stack.layers)
        if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
            continue
        places: list[Place] = []
        around = stack.embeddings  # see `StackPlaces.embeddings`
        if stack.embeddings is not None:
            embeddings = _get(base, stack.embeddings)
            if embeddings is None:
                continue
            table = getattr(embeddings, "weight", None)
            width = int(table.shape[1]) if table is not None and table.ndim == 2 else hidden
            site = Site(stack.name, None, "embeddings", "embeddings", width, width)
            places.append(Place(site, stack.embeddings, stack.embeddings))
            holder = stack.embeddings.rpartition(".")[0]
            # A module that holds the layers too (OPT's decoder) is more than embeddings.
            if holder not in ("", stack.root) and not stack.layers.startswith(f"{holder}."):
                around = holder
        paths = tuple(f"{stack.layers}.{i}" for i in range(len(layers)))
        for i, path in enumerate(paths):
            inside = None if stack.single is None else _get(layers[i], stack.single)
            if isinstance(inside, nn.ModuleList) and len(inside) > 1:
                raise SiteError(
                    f"A layer of this {base.config.model_type!r} holds {len(inside)} layers that run in "
                    "turn, over and over, so that none of them has a place of its own; take a model whose "
                    "layers hold one."
                )
            places += _layer_places(stack, i, layers[i], path, hidden)
        runs = int(base.config.num_hidden_layers) // len(layers) if stack.repeats else 1
        blends = stack.blends is not None and _get(base, stack.blends) is not None
        stacks.append(StackPlaces(stack, paths, hidden, tuple(places), around, runs, blends))
    if not stacks:
        raise SiteError(
            f"The site map of {base.config.model_type!r} finds no layers on {type(base).__name__}; families "
            f"with a map: {', '.join(sorted(FAMILIES))}."
        )
    return Layout(family, tuple(stacks), generic=known is None)
