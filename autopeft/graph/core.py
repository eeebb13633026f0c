"""The composition graph: a recipe resolved on a backbone, checked before anything is built.

The graph knows every entry with its sites and parameters and how entries act together at each site. It is
the only thing that counting, injection and `autopeft.graph.drawing` look at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from itertools import count as numbers
from typing import Any

import networkx as nx

from autopeft.composition import ChildSpec, get_composition, refuse_alone
from autopeft.display import percent, short
from autopeft.errors import CompositionError
from autopeft.graph.drawing import draw_box
from autopeft.graph.layer_masks import WHOLE
from autopeft.graph.parts import canonical_json, parts_of, weight_places
from autopeft.graph.tree import Entry, Leaf, Node, Tree, child_spec
from autopeft.method import ParameterCount, get_method
from autopeft.recipe import CompositionItem, EntryItem, Item, Recipe
from autopeft.recipe.format_1 import canonical_config
from autopeft.spec import BackboneSpec, Site

__all__ = ["CompositionGraph", "build_graph"]


@dataclass(frozen=True)
class CompositionGraph:
    """Entries, and the trees in which they act (file order). Trees act side by side: their deltas add."""

    recipe: Recipe
    spec: BackboneSpec
    entries: Mapping[str, Entry]
    trees: tuple[Tree, ...]

    def parameter_count(self) -> ParameterCount:
        """Parameters of all entries and compositions."""
        total = ParameterCount(0, 0)
        for entry in self.entries.values():
            total = total + entry.count
        for node in self.nodes():
            total = total + node.count
        return total

    def __repr__(self) -> str:
        return f"CompositionGraph({short(self.recipe.name)!r} on {self.spec.family}: {self._note})"

    def _repr_html_(self) -> str:
        """A small box for notebooks, with the drawing."""
        return draw_box(self, self.recipe.name, note=f"on {self.spec.family}: {self._note}")

    @property
    def _note(self) -> str:
        """Methods and size on one line."""
        deployed = self.parameter_count().deployed
        return f"{self.recipe.brief}, {deployed:,} deployed ({percent(deployed / self.spec.parameters)})"

    def nodes(self) -> Iterator[Node]:
        """Every composition, parents first."""
        stack = list(self.trees)
        while stack:
            tree = stack.pop(0)
            if isinstance(tree, Node):
                yield tree
                stack[:0] = tree.children

    def kind(self, name: str) -> str:
        """The method of an entry, or the kind of a composition, by name."""
        entry = self.entries.get(name)
        return next(n.kind for n in self.nodes() if n.name == name) if entry is None else entry.method.name

    def leaves(self, tree: Tree) -> Iterator[Entry]:
        """The entries under a tree, in file order."""
        if isinstance(tree, Leaf):
            yield self.entries[tree.name]
            return
        for child in tree.children:
            yield from self.leaves(child)

    def child_spec(self, tree: Tree) -> ChildSpec:
        """What a composition above `tree` knows of it."""
        return child_spec(self.entries, tree)

    def sites(self) -> tuple[Site, ...]:
        """Every site that some entry sits at, in the spec's order."""
        used = {s.key for e in self.entries.values() for s in e.sites}
        return tuple(s for s in self.spec.sites if s.key in used)

    def trees_at(self, site: Site) -> tuple[Tree, ...]:
        """The trees cut down to what touches `site`."""
        cut = (self._cut(tree, site.key) for tree in self.trees)
        return tuple(t for t in cut if t is not None)

    def _cut(self, tree: Tree, key: str) -> Tree | None:
        if isinstance(tree, Leaf):
            return tree if any(s.key == key for s in self.entries[tree.name].sites) else None
        children = tuple(c for child in tree.children if (c := self._cut(child, key)) is not None)
        return Node(tree.name, tree.kind, children, tree.options, tree.count) if children else None

    @cached_property
    def digraph(self) -> nx.DiGraph[Any]:
        """Nodes `site:…`, `module:…` (an entry at a site), `composition:…`; an edge points along the flow of
        data.

        Modules feed their composition at the site, which feeds the site; sites are chained in the order of
        the forward pass.
        """
        graph: nx.DiGraph[Any] = nx.DiGraph()
        previous: dict[str, str] = {}
        for site in self.sites():
            at = f"site:{site.path}"
            graph.add_node(at, kind="site", label=site.path)
            if site.stack in previous:
                graph.add_edge(previous[site.stack], at)
            previous[site.stack] = at
            for tree in self.trees_at(site):
                self._draw(graph, tree, site, at)
        return graph

    def _draw(self, graph: nx.DiGraph[Any], tree: Tree, site: Site, parent: str) -> None:
        if isinstance(tree, Leaf):
            name = f"module:{site.path}.{tree.name}"
            graph.add_node(name, kind="module", label=tree.name)
        else:
            name = f"composition:{site.path}.{tree.name}"
            graph.add_node(name, kind="composition", label=tree.kind)
            for child in tree.children:
                self._draw(graph, child, site, name)
        graph.add_edge(name, parent)

    def canonical(self) -> Any:
        """The structure without names and file order: equal for recipes that mean the same on this
        backbone."""
        return sorted((self._canonical(t) for t in self.trees), key=canonical_json)

    def _canonical(self, tree: Tree, *, training: bool = False) -> dict[str, Any]:
        if isinstance(tree, Leaf):
            entry = self.entries[tree.name]
            config = canonical_config(entry.method.name, entry.method.config)
            del config["sites"]
            data: dict[str, Any] = {
                "method": entry.method.name,
                "config": config,
                "sites": sorted(s.key for s in entry.sites),
            }
            if training and not entry.traits.pools:  # which has nothing to train
                data["training"] = self._settings(tree.name, entry.method.name)
            return data
        children = [self._canonical(c, training=training) for c in tree.children]
        if not get_composition(tree.kind).traits.ordered:
            children.sort(key=canonical_json)
        data = {"composition": tree.kind, "options": dict(tree.options), "children": children}
        if training and tree.count.trained:
            data["training"] = self._settings(tree.name, tree.kind)
        return data

    def _settings(self, name: str, kind: str) -> list[Any]:
        """Learning rate and weight decay of an entry, a composition or the head, then of parts, if any."""
        section = self.recipe.training
        parts = {part: section.settings(name, kind, part=part) for part in sorted(section.parts(name, kind))}
        return [*section.settings(name, kind), *([parts] if parts else [])]

    def hash(self) -> str:
        """SHA-256 of the canonical structure."""
        return hashlib.sha256(canonical_json(self.canonical()).encode()).hexdigest()

    def trial_hash(self) -> str:
        """SHA-256 of the canonical structure and of how each part of it trains.

        Equal for recipes whose training differs in nothing but names and file order.
        """
        trees = sorted((self._canonical(t, training=True) for t in self.trees), key=canonical_json)
        section = self.recipe.training
        shared = section.canonical(without=("learning_rate", "weight_decay"))
        policies = [[p.method, canonical_config(p.method, p.method_config())] for p in section.policies]
        data = [trees, shared, policies, self._settings("head", "head")]
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def read_by(recipe: Recipe, spec: BackboneSpec) -> BackboneSpec:
    """The backbone as the head of a recipe reads it: without a pooler that it reads past."""
    for ref in recipe.entries():
        method = get_method(ref.method)
        if method.traits.pools and method(ref.item.method_config()).traits.skips_pooler:
            return spec.past_pooler
    return spec


def build_graph(recipe: Recipe, spec: BackboneSpec) -> CompositionGraph:
    """Resolve and check a recipe on a backbone.

    Raises:
        SiteError: a site does not exist on this backbone, or no named site does.
        CompositionError: methods cannot act together; the message says why and what would work.
        RecipeError: a layer does not exist.
    """
    spec = read_by(recipe, spec)
    builder = _Builder(recipe, spec)
    trees = tuple(builder.trees())
    graph = CompositionGraph(recipe, spec, builder.entries, trees)
    _check_directions(graph)
    _check_regions(graph)
    _check_heads(graph)
    return graph


def _aliases(items: Iterable[Item]) -> Iterator[str]:
    """The `as:` of every composition among `items` and below."""
    for item in items:
        if isinstance(item, CompositionItem):
            if item.alias is not None:
                yield item.alias
            yield from _aliases(item.children)


class _Builder:
    def __init__(self, recipe: Recipe, spec: BackboneSpec) -> None:
        self.recipe, self._parts = recipe, parts_of(spec)
        self.entries: dict[str, Entry] = {}
        names = [ref.name for ref in recipe.entries()]
        self._names = iter(names)
        self._taken = {*names, *_aliases((*(i for b in recipe.layers for i in b.attach), *recipe.model))}

    def trees(self) -> Iterator[Tree]:
        for block in self.recipe.layers:
            mask = self._parts.masks.mask(block.at, block.stack)
            for item in block.attach:
                yield self._tree(item, mask)
        for item in self.recipe.model:
            yield self._tree(item, WHOLE)

    def _tree(self, item: Item, mask: int) -> Tree:
        if isinstance(item, EntryItem):
            return self._leaf(item, mask)
        children = tuple(self._tree(child, mask) for child in item.children)
        specs = [child_spec(self.entries, c) for c in children]
        composition = get_composition(item.kind)
        refuse_alone(item.kind, specs)
        composition.check(specs, dict(item.options))
        return Node(
            self._name(item), item.kind, children, dict(item.options), composition.parameter_count(specs)
        )

    def _name(self, item: CompositionItem) -> str:
        if item.alias is not None:
            return item.alias
        numbered = chain([item.kind], (f"{item.kind}_{n}" for n in numbers(2)))
        name = next(name for name in numbered if name not in self._taken)
        self._taken.add(name)
        return name

    def _leaf(self, item: EntryItem, mask: int) -> Leaf:
        name = next(self._names)
        shape = self._parts.leaf(item, name)
        count = ParameterCount(*shape.count(mask, name))
        self.entries[name] = Entry(name, shape.method(shape.config), shape.sites(mask), count)
        return Leaf(name)


def _check_regions(graph: CompositionGraph) -> None:
    owner: dict[Site, str] = {}
    for entry in graph.entries.values():
        for site in entry.sites if "region" in entry.ways else ():
            if site in owner:
                raise CompositionError(
                    f"{owner[site]} and {entry.name} would each take the place of {site.path}, which only "
                    "one can; list them for different layers, or leave one out."
                )
            owner[site] = entry.name


def _check_heads(graph: CompositionGraph) -> None:
    heads = [entry.name for entry in graph.entries.values() if entry.traits.replaces_head]
    if len(heads) > 1:
        raise CompositionError(
            f"{' and '.join(heads)} would each put a head of its own in the place of the model's, which only "
            "one can; keep one of them, or take for the others prompts without a head, such as idpg."
        )


def _check_directions(graph: CompositionGraph) -> None:
    owner: dict[tuple[str, int | None, str], str] = {}
    for entry in graph.entries.values():
        if not entry.traits.direction:
            continue
        for site in entry.sites:
            for place in weight_places(site):
                if place in owner:
                    raise CompositionError(
                        f"{owner[place]} and {entry.name} both replace the direction of the weight at "
                        f"{site.path}, which has only one; "
                        "keep one of them there, or use lora, whose deltas add."
                    )
                owner[place] = entry.name
