"""The composition graph: a recipe resolved on a backbone, checked before anything is built.

The graph knows every entry with its sites and parameters and how entries act together at each site. It is
the only thing that counting, injection and drawing look at. It is drawn as text, Mermaid and SVG; layers that
carry the same modules at the same sites are drawn once.
"""

from __future__ import annotations

import hashlib
import html
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import networkx as nx

from autopeft.composition import ChildSpec, get_composition, refuse_alone
from autopeft.display import box, percent, short
from autopeft.errors import CompositionError, printable
from autopeft.graph.layer_masks import WHOLE
from autopeft.graph.parts import Parts, canonical_json, parts_of, weight_places
from autopeft.graph.tree import Entry, Leaf, Node, Tree, child_spec
from autopeft.method import ParameterCount, get_method
from autopeft.recipe import CompositionItem, EntryItem, Item, Recipe
from autopeft.recipe.format_1 import canonical_config
from autopeft.spec import BackboneSpec, Site

__all__ = [
    "CompositionGraph",
    "build_graph",
    "draw_box",
    "draw_mermaid",
    "draw_svg",
    "draw_text",
    "read_by",
]


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

    def nodes(self, tree: Tree | None = None) -> Iterator[Node]:
        """Every composition, or every one of a tree, parents first."""
        stack = list(self.trees) if tree is None else [tree]
        while stack:
            top = stack.pop(0)
            if isinstance(top, Node):
                yield top
                stack[:0] = top.children

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
        """The `ChildSpec` by which a composition above sees `tree`, when it is built."""
        found = child_spec(self.entries, tree)
        if isinstance(tree, Node):
            return found
        entry = self.entries[tree.name]
        return replace(found, build=partial(entry.method.build, entry.sites, self.spec))

    def sites(self) -> tuple[Site, ...]:
        """Every site that some entry sits at, in the spec's order."""
        used = {s.key for e in self.entries.values() for s in e.sites}
        return tuple(s for s in self.spec.sites if s.key in used)

    def trees_at(self, site: Site, trees: Sequence[Tree] | None = None) -> tuple[Tree, ...]:
        """The trees (default: all) cut down to what touches `site`."""
        found: list[Tree] = []
        for tree in self.trees if trees is None else trees:
            if isinstance(tree, Leaf):
                if any(s.key == site.key for s in self.entries[tree.name].sites):
                    found.append(tree)
                continue
            children = self.trees_at(site, tree.children)
            if children:
                found.append(Node(tree.name, tree.kind, children, tree.options, tree.count))
        return tuple(found)

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

    def _canonical(self, tree: Tree, *, training: bool = False) -> dict[str, Any]:
        """A tree without names and file order: equal for recipes that mean the same on this backbone."""
        if isinstance(tree, Leaf):
            entry = self.entries[tree.name]
            config = canonical_config(entry.method.name, entry.method.config)
            del config["sites"]
            data: dict[str, Any] = {
                "method": entry.method.name,
                "config": config,
                "sites": sorted(s.key for s in entry.sites),
            }
            if training and tree.name in self._starts:
                data["start"] = self._starts[tree.name]
            if entry.frozen:
                data["frozen"] = True
            elif training and not entry.traits.pools:  # which has nothing to train
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

    @cached_property
    def _starts(self) -> dict[str, list[Any]]:
        """What each entry with a `from:` starts from, by content, and what stands beside that in its item."""
        found, told = self.recipe.starts(), {"method", "config", "alias", "start", "frozen"}
        return {
            ref.name: [found[ref.name], ref.item.model_dump(mode="json", exclude=told, exclude_defaults=True)]
            for ref in self.recipe.entries()
            if ref.name in found
        }

    def hash(self) -> str:
        """SHA-256 of the canonical structure: what is attached where, and which entries are frozen. What
        entries start from is no part of it."""
        trees = sorted((self._canonical(t) for t in self.trees), key=canonical_json)
        return hashlib.sha256(canonical_json(trees).encode()).hexdigest()

    def trial_hash(self) -> str:
        """SHA-256 of the canonical structure and of how each part of it trains.

        Equal for recipes whose training differs in nothing but names and file order. An entry that starts
        `from:` an input counts by the hash of the input's content and by the entry that it names there, so
        that other starts are other trainings, and the same content under another name is the same one.

        Raises:
            RecipeError: the hash of an input's content is not known.
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
    parts = parts_of(spec)

    # Names that are given: compositions without one are numbered past them.
    names = [ref.name for ref in recipe.entries()]
    used, left = set(names), [*(item for block in recipe.layers for item in block.attach), *recipe.model]
    while left:
        item = left.pop()
        if isinstance(item, CompositionItem):
            left += item.children
            used |= set() if item.alias is None else {item.alias}

    entries: dict[str, Entry] = {}
    trees: list[Tree] = []
    in_order = iter(names)
    for block in recipe.layers:
        mask = parts.masks.mask(block.at, block.stack)
        trees += [_tree(item, mask, parts, entries, in_order, used) for item in block.attach]
    trees += [_tree(item, WHOLE, parts, entries, in_order, used) for item in recipe.model]
    graph = CompositionGraph(recipe, spec, entries, tuple(trees))

    # What no two entries can do.
    directed: dict[tuple[str, int | None, str], str] = {}  # weights, and the entry that directs each
    for entry in graph.entries.values():
        for site in entry.sites if entry.traits.direction else ():
            for place in weight_places(site):
                if place in directed:
                    raise CompositionError(
                        f"{directed[place]} and {entry.name} both replace the direction of the weight at "
                        f"{site.path}, which has only one; keep one of them there, or use lora, whose deltas "
                        "add."
                    )
                directed[place] = entry.name
    regions: dict[Site, str] = {}
    for entry in graph.entries.values():
        for site in entry.sites if "region" in entry.ways else ():
            if site in regions:
                raise CompositionError(
                    f"{regions[site]} and {entry.name} would each take the place of {site.path}, which only "
                    "one can; list them for different layers, or leave one out."
                )
            regions[site] = entry.name
    heads = [entry.name for entry in graph.entries.values() if entry.traits.replaces_head]
    if len(heads) > 1:
        raise CompositionError(
            f"{' and '.join(heads)} would each put a head of its own in the place of the model's, which only "
            "one can; keep one of them, or take for the others prompts without a head, such as idpg."
        )
    return graph


def _tree(
    item: Item, mask: int, parts: Parts, entries: dict[str, Entry], names: Iterator[str], used: set[str]
) -> Tree:
    """The tree of an item in the layers of `mask`.

    Args:
        entries: its entries are added here.
        names: of the entries that are still to come, in file order.
        used: names that are given; that of a composition is added.
    """
    if isinstance(item, EntryItem):
        name = next(names)
        shape = parts.leaf(item, name)
        count = ParameterCount(*shape.count(mask, name))
        method = shape.method(shape.config)
        traits = method.traits
        entries[name] = Entry(name, method, shape.sites(mask), count, traits, traits.ways, item.frozen)
        return Leaf(name)
    children = tuple(_tree(child, mask, parts, entries, names, used) for child in item.children)
    specs = [child_spec(entries, child) for child in children]
    composition, options = get_composition(item.kind), dict(item.options)
    refuse_alone(item.kind, specs)
    composition.check(specs, options)
    name = item.alias or item.kind
    number = 2
    while item.alias is None and name in used:
        name, number = f"{item.kind}_{number}", number + 1
    used.add(name)
    return Node(name, item.kind, children, options, composition.parameter_count(specs, options))


# Drawing
# ------------------------------------------------------------------------------------------------------------

_NOTHING = "(no modules: the head alone trains)"


@dataclass(frozen=True)
class _Block:
    """Consecutive layers of a stack that carry the same, or what belongs to no layer.

    Attributes:
        title: the stack and the layers, or what the block is where it belongs to none.
        label: the same in short.
        layers: their indices, empty for what belongs to no layer.
        places: what acts at each site, by the site's name, in the order of the forward pass; empty for layers
            that stay as they are.
    """

    title: str
    label: str
    layers: tuple[int, ...]
    places: tuple[tuple[str, tuple[Tree, ...]], ...]


def _blocks(graph: CompositionGraph) -> list[_Block]:
    """All layers from the input to the head; methods on tensors of no single site follow, then those on
    logits."""
    found: list[_Block] = []
    for stack in graph.spec.stacks:
        at: dict[int | None, list[tuple[str, tuple[Tree, ...]]]] = {}
        for site in graph.sites():
            if site.stack == stack.name:
                at.setdefault(site.layer, []).append((site.name, graph.trees_at(site)))
        if None in at:
            title = f"{stack.name} input"
            found.append(_Block(title, title, (), tuple(at[None])))
        first = 0
        for layer in range(stack.layers):
            places = tuple(at.get(layer, ()))
            if layer + 1 < stack.layers and tuple(at.get(layer + 1, ())) == places:
                continue
            span = f"{first}-{layer}" if layer > first else f"{layer}"
            title = f"{stack.name} · layer{'s' if layer > first else ''} {span}"
            label = f"{stack.name} {span}" if graph.spec.encoder_decoder else span
            found.append(_Block(title, label, tuple(range(first, layer + 1)), places))
            first = layer + 1
    for title, name, on_logits in (("backbone tensors", "weights", False), ("head", "logits", True)):
        trees = []
        for tree in graph.trees:
            entries = tuple(graph.leaves(tree))
            if not any(e.sites for e in entries) and any("logits" in e.ways for e in entries) == on_logits:
                trees.append(tree)
        if trees:
            found.append(_Block(title, title, (), ((name, tuple(trees)),)))
    return found


def _lines(graph: CompositionGraph) -> list[tuple[str, list[tuple[str, str]]]]:
    """The title of each block that carries something, and what acts at each of its sites on one line."""

    def label(tree: Tree) -> str:
        if not isinstance(tree, Leaf):
            return f"{tree.kind}({', '.join(map(label, tree.children))})"
        method = graph.entries[tree.name].method
        size = getattr(method, "size_field", None)
        return f"{tree.name}[{size} {getattr(method.config, size)}]" if size else tree.name

    return [
        (block.title, [(site, " + ".join(map(label, trees))) for site, trees in block.places])
        for block in _blocks(graph)
        if block.places
    ]


def draw_text(graph: CompositionGraph) -> str:
    """The graph as lines for a terminal."""
    drawn = _lines(graph)
    if not drawn:
        return _NOTHING
    width = max(len(site) for _, rows in drawn for site, _ in rows)
    lines: list[str] = []
    for title, rows in drawn:
        lines.append(title)
        for i, (site, label) in enumerate(rows):
            arm = "└─" if i == len(rows) - 1 else "├─"
            lines.append(f"  {arm} {site.ljust(width)} ← {label}")
    return "\n".join(lines)


def _quoted(label: str) -> str:
    """A label inside Mermaid's quotes: names come from recipes, so nothing in them may end the string."""
    return html.escape(label, quote=True).replace("[", "&#91;").replace("]", "&#93;")


def draw_mermaid(graph: CompositionGraph) -> str:
    """The graph as a Mermaid flowchart, bottom to top."""
    lines = ["flowchart BT"]
    for b, (title, rows) in enumerate(_lines(graph)):
        lines.append(f'  subgraph B{b}["{_quoted(title)}"]')
        for r, (site, label) in enumerate(rows):
            lines.append(f'    B{b}M{r}["{_quoted(label)}"] --> B{b}S{r}("{_quoted(site)}")')
        lines.append("  end")
        if b:
            lines.append(f"  B{b - 1} --> B{b}")
    return "\n".join(lines)


# SVG. Pixels; fonts differ, so that the width of a character is about right.
# ------------------------------------------------------------------------------------------------------------

_CHARACTER, _CHIP, _PILL, _BARE, _GAP, _PAD, _BETWEEN = 6.7, 22, 20, 16, 4, 6, 14
_NARROW, _WIDE = 96, 236  # a column
_HUES = ("70,140,240", "240,150,50", "50,180,110", "225,80,80", "140,95,225", "200,175,30", "50,175,195")
# Every rule names the drawing, which may lie in a page. Letters and lines have one colour, in shades; chips
# are half-transparent, which suits a light and a dark ground.
_STYLE = (
    ".composition-graph{color:var(--graph-ink,#1b1f24);font:12px system-ui,sans-serif}"
    ".composition-graph text{fill:currentColor}"
    ".composition-graph .ground{fill:var(--graph-ground,#fff)}"
    ".composition-graph .label{opacity:.7}"
    ".composition-graph .composition-name{opacity:.7;font-style:italic}"
    ".composition-graph .site-name{font-weight:600}"
    ".composition-graph line{stroke:currentColor;stroke-opacity:.25;stroke-width:2}"
    ".composition-graph .tip{fill:currentColor;fill-opacity:.7}"
    ".composition-graph .node{fill:#3987d6}"
    ".composition-graph .bare{fill:currentColor;fill-opacity:.3}"
    ".composition-graph rect{stroke:currentColor;stroke-opacity:.4}"
    ".composition-graph .ground{stroke:none}"
    ".composition-graph .site{fill:currentColor;fill-opacity:.05}"
    ".composition-graph .composition{fill:none;stroke-dasharray:4 3}"
    + "".join(f".composition-graph .c{i}{{fill:rgba({hue},.3)}}" for i, hue in enumerate(_HUES))
)


@dataclass(frozen=True)
class _Box:
    """A chip (one entry, coloured by its method), or a frame around the children of a composition.

    `width` is what its text and children take at least, both in pixels.
    """

    text: str
    full: str
    colour: int | None
    width: int
    height: int
    children: tuple[_Box, ...] = ()

    def draw(self, x: int, y: int, width: int) -> Iterator[str]:
        """The box with its left upper corner at (x, y), its text cut to what fits."""
        text, room = self.text, max(4, int((width - 2 * _PAD) / _CHARACTER))
        if _columns(text) > room:
            while _columns(text) > room - 1:
                text = text[:-1]
            text += "…"
        kind, name = (
            ("composition", "composition-name")
            if self.colour is None
            else (f"chip c{self.colour}", "chip-name")
        )
        yield f"<g><title>{html.escape(self.full)}</title>"
        yield f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{self.height}" rx="5"/>'
        yield f'<text class="{name}" x="{x + _PAD + 2}" y="{y + 15}">{html.escape(text)}</text>'
        y += _PILL
        for child in self.children:
            yield from child.draw(x + _PAD, y, width - 2 * _PAD)
            y += child.height + _GAP
        yield "</g>"


def _columns(text: str) -> int:
    """Characters of a text, wide East Asian ones counted twice."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _text_width(text: str) -> int:
    """Pixels that a box needs for a text."""
    return math.ceil(_columns(text) * _CHARACTER) + 2 * _PAD + 6


def _boxes(graph: CompositionGraph, trees: Iterable[Tree], *, numbered: bool = False) -> Iterator[_Box]:
    """The boxes of a site's trees. A chip says `lora · rank 8`, with the entry's name first where the recipe
    gives it one; children are numbered where their order counts."""
    methods = list(dict.fromkeys(e.method.name for e in graph.entries.values()))
    named = {e.name for e in graph.recipe.entries() if e.item.alias is not None}
    for i, tree in enumerate(trees, 1):
        number = f"{i}. " if numbered else ""
        if isinstance(tree, Leaf):
            entry = graph.entries[tree.name]
            size = getattr(entry.method, "size_field", None)
            text = f"{entry.name}: " * (tree.name in named) + entry.method.name
            text = short(f"{text} · {size} {getattr(entry.method.config, size)}" if size else text, 120)
            colour = methods.index(entry.method.name) % len(_HUES)
            yield _Box(number + text, text, colour, _text_width(number + text), _CHIP)
        else:
            ordered = get_composition(tree.kind).traits.ordered
            inner = tuple(_boxes(graph, tree.children, numbered=ordered))
            kind = short(tree.kind, 40)
            width = max([_text_width(number + kind), *(box.width + 2 * _PAD for box in inner)])
            height = _PILL + sum(box.height + _GAP for box in inner) + _PAD
            yield _Box(number + kind, f"{kind} {short(tree.name, 80)}", None, width, height, inner)


def _edges(
    graph: CompositionGraph, left: int, places: Sequence[Mapping[str, Sequence[_Box]]]
) -> dict[str, tuple[int, int]]:
    """Left edge and width of each site's column, in the order of the forward pass."""
    order = {s.name: i for i, s in reversed(list(enumerate(graph.spec.sites)))}
    found: dict[str, tuple[int, int]] = {}
    for name in sorted({name for at in places for name in at}, key=lambda n: order.get(n, len(order))):
        wide = max(_text_width(name), *(box.width + 2 for at in places for box in at.get(name, ())))
        found[name] = (left, min(_WIDE, max(_NARROW, wide)))
        left += found[name][1] + _BETWEEN
    return found


def draw_svg(graph: CompositionGraph) -> str:
    """The graph as an SVG for a file or inside a page, input at the top.

    A row is a layer, or consecutive layers that carry the same; a column is a kind of site. Boxes at a site
    act there, side by side unless they stand in a frame. Every text is escaped.

    Alone it is dark on white. A page sets `--graph-ink` and `--graph-ground` to its own colours
    (`currentColor` and `none`).
    """
    rows = [(block, {site: list(_boxes(graph, ts)) for site, ts in block.places}) for block in _blocks(graph)]
    trunk = max(_text_width(label) for label in [*(block.label for block, _ in rows), "head"])
    layers = _edges(graph, trunk + 20, [places for block, places in rows if block.layers])
    y, right, shapes = _PAD, trunk + 20 + _text_width(_NOTHING), []
    for block, places in rows:
        edges = layers if block.layers else _edges(graph, trunk + 20, [places])
        middle = y + (_PILL if places else _BARE) // 2
        radius, kind, note = (5, "node", "") if places else (3, "node bare", ": as before")
        shapes += [
            f'<g class="row"><title>{html.escape(block.title)}{note}</title>',
            f'<circle class="{kind}" cx="{trunk}" cy="{middle}" r="{radius}"/>',
            f'<text class="label" x="{trunk - 12}" y="{middle + 4}" text-anchor="end">'
            f"{html.escape(block.label)}</text>",
        ]
        bottom, end = y + (_PILL if places else _BARE), trunk + 6
        for name, boxes in places.items():
            x, width = edges[name]
            right, top = max(right, x + width), y + _PILL + _GAP
            shapes += [
                f'<line x1="{end}" y1="{middle}" x2="{x}" y2="{middle}"/>',
                f'<rect class="site" x="{x}" y="{y}" width="{width}" height="{_PILL}" rx="10"/>',
                f'<text class="site-name" x="{x + width // 2}" y="{y + 14}" text-anchor="middle">'
                f"{html.escape(name)}</text>",
            ]
            for item in boxes:
                shapes += item.draw(x, top, width)
                top += item.height + _GAP
            bottom, end = max(bottom, top + _PAD), x + width
        shapes.append("</g>")
        y = bottom + (_BETWEEN if places else _GAP)
    if not graph.entries:
        shapes.append(f'<text x="{trunk + 20}" y="{_PAD + 12}">{_NOTHING}</text>')
    width, height = right + _BETWEEN, y + 18
    rows_as_text = (
        f"{title}: " + ", ".join(f"{site} ← {x}" for site, x in lines) for title, lines in _lines(graph)
    )
    description = html.escape(printable("; ".join(rows_as_text)), quote=True) or _NOTHING
    return (
        f'<svg class="composition-graph" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-label="{description}">'
        f'<style>{_STYLE}</style><rect class="ground" width="{width}" height="{height}"/>'
        f'<line x1="{trunk}" y1="{_PAD}" x2="{trunk}" y2="{y}"/>{"".join(shapes)}'
        f'<path class="tip" d="M{trunk - 6} {y - 2} h12 l-6 10 z"/>'
        f'<text class="label" x="{trunk - 8}" y="{y + 10}" text-anchor="end">head</text></svg>'
    )


def draw_box(graph: CompositionGraph, title: str, *parts: str, note: str) -> str:
    """The graph below `parts` in a box for a notebook, in the page's own colours (see `autopeft.display`)."""
    colours = "--graph-ink:currentColor;--graph-ground:none"
    drawn = f'<div style="overflow:auto;max-height:40em;{colours}">{draw_svg(graph)}</div>'
    return box(title, *parts, drawn, note=note)
