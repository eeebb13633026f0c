"""A cache of recipe items on a backbone: their sites, their parameters and their canonical text.

A search counts the same configurations at the same places over and over. A `Shape` is an item checked once
for each configuration; it knows its parameters and its text at any layers (a mask, see `layer_masks`). A
*part* is a shape with a mask. The parameters of a recipe are the sum of its parts', and its hash is that of
their texts: equal to what `build_graph` gives, without a graph.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakSet

from autopeft.composition import ChildSpec, Way, get_composition, input_width, refuse_alone
from autopeft.errors import CompositionError, RecipeError, SiteError, near
from autopeft.graph.layer_masks import WHOLE, LayerMasks, key_text
from autopeft.graph.memo import Memo
from autopeft.method import MethodConfig, ParameterCount, Traits, get_method
from autopeft.recipe import CompositionItem, EntryItem, Item, Recipe
from autopeft.recipe.format_1 import canonical_config
from autopeft.recipe.models import validate_config
from autopeft.spec import BackboneSpec, Site

__all__ = [
    "LeafShape",
    "NodeShape",
    "Part",
    "Parts",
    "Shape",
    "hash_of",
    "parts_of",
    "total_of",
    "weight_places",
]

_SHAPES = 1 << 12
_RESULTS = 1 << 16
_SPECS = 8
_READS = {"text": "text", "vision": "images", "audio": "sound"}

V = TypeVar("V")
Direction = tuple[str, int | None, str]
"""A weight whose direction is replaced: stack, layer and site name."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def weight_places(site: Site) -> tuple[Direction, ...]:
    """The weights of a site; a fused projection holds those of its parts."""
    names = ("q", "k", "v") if site.name == "qkv" else (site.name,)
    return tuple((site.stack, site.layer, name) for name in names)


class Shape(ABC):
    """An item, configured: what it is at any layers.

    Attributes:
        label: how messages call it.
        ways: how it acts.
        directed: whether an entry of it replaces the direction of weights.
        heads: how many of them take the head's place.
        may_clash: whether its own entries might replace one direction, or the head, twice.
        pretrained: whether one of them reads pretrained tensors alone.
        phased: how many of them train in phases of their own.
        resizes: whether one of them settles how large it is while it trains.
        remade: whether one of them has other parameters once it is deployed.
        fed, frozen, searched, part_size: see `ChildSpec`.
    """

    label: str
    ways: frozenset[Way]
    directed: bool
    heads: int
    may_clash: bool
    pretrained: bool
    phased: int
    resizes: bool
    remade: bool
    fed: Callable[[Site], int]
    frozen: bool = False
    searched: bool
    part_size: Callable[[Site, str], int | None] | None = None

    def __init__(self, parts: Parts) -> None:
        self._parts, self.fed = parts, input_width
        parts.living.add(self)
        self._counts: dict[int, tuple[int, int, int]] = {}
        self._texts: dict[int, str] = {}

    def count(self, mask: int, name: str | None = None) -> tuple[int, int, int]:
        """`ParameterCount` at the layers of `mask`, as a tuple; `name` is what errors call an entry.

        Raises:
            SiteError: none of its sites is there.
            CompositionError: methods cannot act together.
            MethodError: the method cannot be counted on this backbone.
        """
        found = self._counts.get(mask)
        if found is None:
            count = self._count(mask, name or self.label)
            found = self._parts.keep(self._counts, mask, (count.deployed, count.trained, count.state))
        return found

    def text(self, mask: int) -> str:
        """The canonical structure at the layers of `mask`, as JSON."""
        return self._texts.get(mask) or self._parts.keep(self._texts, mask, self._text(mask))

    def forget(self) -> None:
        """Forget what it is at all masks."""
        self._counts.clear()
        self._texts.clear()

    @abstractmethod
    def sites(self, mask: int) -> tuple[Site, ...]:
        """The sites of its entries: in the spec's order for one entry, entry after entry for several."""

    @abstractmethod
    def directions(self, mask: int) -> list[Direction]:
        """The weights whose direction its entries replace, once for each entry."""

    @abstractmethod
    def _count(self, mask: int, name: str) -> ParameterCount: ...

    @abstractmethod
    def _text(self, mask: int) -> str: ...


class LeafShape(Shape):
    """An entry, configured."""

    def __init__(self, parts: Parts, name: str, method: type[Any], item: EntryItem) -> None:
        super().__init__(parts)
        self.method, self.frozen = method, item.frozen
        self.label = str(method.name)
        self.config: MethodConfig = validate_config(item.method, item.config)
        self._example = method(self.config)
        self._traits: Traits = self._example.traits
        check_needs(name, self._traits, parts.spec)
        self.ways = self._traits.ways
        self.directed, self.pretrained = self._traits.direction, self._traits.pretrained
        self.heads = int(self._traits.replaces_head)
        self.phased, self.resizes = int(self._traits.phased), self._traits.data_dependent
        self.remade, self.searched = self._traits.remade, self._traits.searched
        self.fed = getattr(self._example, "fed_width", input_width)
        self.part_size = getattr(self._example, "part_size", None)
        for site in self.config.sites or ():
            if site not in self._traits.sites:
                raise SiteError(
                    f"{name} cannot sit at {site!r}.{near(site, self._traits.sites)} It takes: "
                    f"{', '.join(self._traits.sites) or 'no sites'}."
                )
            parts.spec.require_name(site)
        default: tuple[str, ...] = getattr(self._example, "default_sites", self._traits.default_sites)
        self._names = default if self.config.sites is None else self.config.sites
        # A fused projection holds the weights of its parts.
        self.may_clash = self.directed and "qkv" in self._names and len(self._names) > 1
        # It may have fewer sites than its names and layers tell.
        self._fewer = self._traits.changes_length or hasattr(self._example, "among")
        self._spread = parts.masks.spread(frozenset(self._names))
        config = {k: v for k, v in canonical_config(self.label, self.config).items() if k != "sites"}
        frozen = '"frozen":true,' if self.frozen else ""
        self._head = (
            f'{{"config":{canonical_json(config)},{frozen}"method":{json.dumps(self.label)},"sites":['
        )

    def sites(self, mask: int) -> tuple[Site, ...]:
        if not self.placed(mask):
            return ()
        found = self._spread.sites(mask)
        if self._traits.changes_length and not self._traits.every_stack:
            # Prompts go to the stack that reads the input; a decoder behind an encoder has none.
            first = self._parts.spec.stacks[0].name
            found = tuple(s for s in found if s.name != "embeddings" or s.stack == first)
        among = getattr(self._example, "among", None)
        return found if among is None else tuple(among(found, self._parts.spec))

    def placed(self, mask: int) -> bool:
        """Whether it has sites there: what may be of the model or of layers has none as the model's."""
        return bool(self._traits.sites) and not (mask == WHOLE and self._traits.also_in_layers)

    def directions(self, mask: int) -> list[Direction]:
        return [place for s in self.sites(mask) for place in weight_places(s)] if self.directed else []

    def _count(self, mask: int, name: str) -> ParameterCount:
        spec, sites = self._parts.spec, self.sites(mask)
        if self.placed(mask) and not sites:
            if self._traits.changes_length and spec.modality == "audio":
                raise SiteError(
                    f"{name} stands beside the embeddings of text, but the encoder of {spec.family!r} reads "
                    "sound, whose embeddings no module yields; use prefix_tuning or a method of layers."
                )
            raise SiteError(
                f"{name} finds none of its sites ({', '.join(self._names)}) on {spec.family!r} in the layers "
                f"it is attached to; there are: {', '.join(spec.site_names())}."
            )
        count: ParameterCount = self._example.parameter_count(sites, spec)
        return replace(count, trained=0) if self.frozen else count

    def _text(self, mask: int) -> str:
        whole = self.placed(mask) and not self._fewer
        return f"{self._head}{self._spread.text(mask) if whole else key_text(self.sites(mask))}]}}"


class NodeShape(Shape):
    """A composition over shapes."""

    def __init__(self, parts: Parts, kind: str, options: dict[str, Any], children: tuple[Shape, ...]) -> None:
        super().__init__(parts)
        self._composition, self._kind = get_composition(kind), kind
        self._ordered: bool = self._composition.traits.ordered
        self._options, self._children = options, children
        self.label = f"{kind}({', '.join(c.label for c in children)})"
        self.ways = frozenset(w for c in children for w in c.ways)
        directed = [c for c in children if c.directed]
        self.directed = bool(directed)
        self.heads = sum(c.heads for c in children)
        self.pretrained = any(c.pretrained for c in children)
        self.phased = sum(c.phased for c in children)
        self.resizes = any(c.resizes for c in children)
        self.remade = any(c.remade for c in children)
        self.searched = any(c.searched for c in children)
        self.may_clash = self.heads > 1 or len(directed) > 1 or any(c.may_clash for c in directed)
        self._tail = f'],"composition":{json.dumps(kind)},"options":{canonical_json(options)}}}'

    def sites(self, mask: int) -> tuple[Site, ...]:
        return tuple({s.key: s for c in self._children for s in c.sites(mask)}.values())

    def directions(self, mask: int) -> list[Direction]:
        return [place for c in self._children for place in c.directions(mask)]

    def _count(self, mask: int, name: str) -> ParameterCount:
        counts = [ParameterCount(*c.count(mask)) for c in self._children]
        specs = [
            ChildSpec(
                c.label,
                c.label,
                c.ways,
                c.sites(mask),
                c.pretrained,
                c.phased,
                resizes=c.resizes,
                directed=c.directed,
                remade=c.remade,
                fed=c.fed,
                frozen=c.frozen,
                part_size=c.part_size,
                searched=c.searched,
            )
            for c in self._children
        ]
        refuse_alone(self._kind, specs)
        self._composition.check(specs, self._options)
        own: ParameterCount = self._composition.parameter_count(specs, self._options)
        return sum(counts, own)

    def _text(self, mask: int) -> str:
        texts = [c.text(mask) for c in self._children]
        if not self._ordered:
            texts.sort()
        return f'{{"children":[{",".join(texts)}{self._tail}'


Part = tuple[Shape, int]
"""A shape and the mask of its layers."""


class Parts:
    """The shapes of one backbone. Memory is bounded.

    A method is taken to count the same for the same configuration and sites. Errors are
    raised each time and name the method; `build_graph` gives them with the recipe's own names.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        self.masks = LayerMasks(spec)
        self._shapes: Memo[Any, Shape] = Memo(_SHAPES)
        self.living: WeakSet[Shape] = WeakSet()  # all whose memory counts
        self._held = 0

    def keep(self, memory: dict[int, V], mask: int, value: V) -> V:
        """Remember a shape's result. When there are too many, those of all shapes are forgotten first."""
        if self._held >= _RESULTS:
            for shape in list(self.living):
                shape.forget()
            self._held = 0
        self._held += 1
        memory[mask] = value
        return value

    def leaf(self, item: EntryItem, name: str) -> LeafShape:
        """The shape of an entry; `name` is what errors call it.

        Raises:
            SiteError: it names a site that its method does not take or the backbone does not have.
            CompositionError: the backbone lacks what the method needs.
            pydantic.ValidationError: its config does not fit.
        """
        method = get_method(item.method)
        key = (method, repr(item.config), item.frozen)
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes.keep(key, LeafShape(self, name, method, item))
        assert isinstance(found, LeafShape)
        return found

    def shape(self, item: Item) -> Shape:
        """The shape of an item (errors: see `leaf`)."""
        if isinstance(item, EntryItem):
            return self.leaf(item, item.method)
        children = tuple(self.shape(child) for child in item.children)
        key = (item.kind, repr(item.options), children)
        found = self._shapes.get(key)
        return found or self._shapes.keep(key, NodeShape(self, item.kind, item.options, children))

    def of(self, recipe: Recipe) -> list[Part]:
        """The parts of a recipe, in file order.

        Raises:
            RecipeError: two entries have one name (data that was read as a recipe never has).
            UsageError: an item does not fit the backbone (see `leaf` and `Shape.count`).
        """
        found: list[Part] = []
        named = False
        for block in recipe.layers:
            mask = self.masks.mask(block.at, block.stack)
            for item in block.attach:
                named = named or item.alias is not None or isinstance(item, CompositionItem)
                found.append((self.shape(item), mask))
        for item in recipe.model:
            named = named or item.alias is not None or isinstance(item, CompositionItem)
            found.append((self.shape(item), WHOLE))
        names = [entry.name for entry in recipe.entries()] if named else []
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise RecipeError(f"Two entries are called {twice[0]!r}; choose another name after 'as:'.")
        return found


_RECENT: Memo[int, Parts] = Memo(_SPECS)


def parts_of(spec: BackboneSpec) -> Parts:
    """The parts of a backbone; those of the last few backbones are kept."""
    found = _RECENT.get(id(spec))
    if found is None:
        found = _RECENT.keep(id(spec), Parts(spec))
    return found


def total_of(parts: Iterable[Part]) -> tuple[int, int]:
    """Deployed and trained parameters of parts together (errors: see `Shape.count`)."""
    deployed = trained = 0
    for shape, mask in parts:
        count = shape.count(mask)
        deployed += count[0]
        trained += count[1]
    return deployed, trained


def hash_of(parts: Iterable[Part]) -> str:
    """The hash of the structure that consists of these parts (see `CompositionGraph.hash`)."""
    texts = sorted([shape.text(mask) for shape, mask in parts])
    return hashlib.sha256(f"[{','.join(texts)}]".encode()).hexdigest()


def clash(parts: Sequence[Part]) -> bool:
    """Whether two entries replace the direction of one weight, the head, or the same region."""
    if sum(shape.heads for shape, _ in parts) > 1:
        return True
    regions = [site.key for shape, mask in parts if "region" in shape.ways for site in shape.sites(mask)]
    if len(set(regions)) < len(regions):
        return True
    directed = [(shape, mask) for shape, mask in parts if shape.directed]
    if not directed or (len(directed) == 1 and not directed[0][0].may_clash):
        return False
    places = [place for shape, mask in directed for place in shape.directions(mask)]
    return len(set(places)) < len(places)


def check_needs(name: str, traits: Traits, spec: BackboneSpec) -> None:
    """Check that the backbone has what a method needs.

    Raises:
        CompositionError: it has not.
    """
    causal = any(s.causal for s in spec.stacks)
    if "logits" in traits.ways and spec.logits is None:
        raise CompositionError(
            f"{name} acts on logits, but this model has none: load {spec.family!r} with a head, such as "
            "AutoModelForSequenceClassification or AutoModelForCausalLM."
        )
    if "token_logits" in traits.needs and not (causal and spec.logits is not None and spec.logits.tokens):
        raise CompositionError(
            f"{name} adds to the logits of each token, and this model has none of tokens: take a decoder as "
            "a language model (AutoModelForCausalLM), or for a task with a head a method of the layers such "
            "as lora."
        )
    if "token_logits" in traits.needs and spec.logits is not None and spec.logits.behind:
        raise CompositionError(
            f"{name} adds to the logits of which a distribution is made, but {spec.family!r} alters what its "
            f"projection yields ({spec.logits.behind}); take a decoder that does not, such as smollm2-135m."
        )
    if "token_logits" in traits.needs and spec.encoder_decoder:
        raise CompositionError(
            f"{name} reads the text that a decoder reads alone, but {spec.family!r} has an encoder that "
            "reads another; take a decoder such as smollm2-135m, or prompt_tuning or lora."
        )
    if "text" in traits.needs and spec.modality != "text":
        raise CompositionError(
            f"{name} needs text input, but {spec.family!r} reads {_READS[spec.modality]}; use a method of "
            "layers instead."
        )
    if "decoder" in traits.needs and not causal:
        raise CompositionError(
            f"{name} needs a decoder, but {spec.family!r} is an encoder; use a decoder such as smollm2-135m."
        )
    if "encoder_decoder" in traits.needs and not spec.encoder_decoder:
        raise CompositionError(
            f"{name} needs an encoder and a decoder, but {spec.family!r} has one stack and no "
            "cross-attention; take a backbone such as T5 or BART, or a method of its layers such as lora."
        )
