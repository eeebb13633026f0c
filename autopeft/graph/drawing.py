"""The graph as text, Mermaid and SVG. Layers that carry the same modules at the same sites are drawn once."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from autopeft.composition import get_composition
from autopeft.display import box, short
from autopeft.errors import printable
from autopeft.graph.tree import Leaf, Tree

if TYPE_CHECKING:
    from autopeft.graph.tree import Entry
    from autopeft.recipe import Recipe
    from autopeft.spec import BackboneSpec, Site

__all__ = ["draw_box", "draw_mermaid", "draw_svg", "draw_text"]

_NOTHING = "(no modules: the head alone trains)"


class Drawable(Protocol):
    """What drawings look at: a `CompositionGraph`, which draws itself in notebooks."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def spec(self) -> BackboneSpec: ...

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    @property
    def trees(self) -> tuple[Tree, ...]: ...

    def sites(self) -> tuple[Site, ...]: ...

    def trees_at(self, site: Site) -> tuple[Tree, ...]: ...

    def leaves(self, tree: Tree) -> Iterator[Entry]: ...


@dataclass(frozen=True)
class _Block:
    """Consecutive layers of a stack that carry the same, or what belongs to no layer.

    Attributes:
        stack: the name of the stack, or what the block is where it belongs to none.
        layers: their indices, empty for what belongs to no layer.
        places: what acts at each site, by the site's name, in the order of the forward pass; empty for layers
            that stay as they are.
    """

    stack: str
    layers: tuple[int, ...]
    places: tuple[tuple[str, tuple[Tree, ...]], ...]

    @property
    def span(self) -> str:
        """`3`, or `0-11`."""
        return "-".join(map(str, dict.fromkeys((self.layers[0], self.layers[-1]))))

    @property
    def title(self) -> str:
        if not self.layers:
            return self.stack
        return f"{self.stack} · layer{'s' if len(self.layers) > 1 else ''} {self.span}"


def _blocks(graph: Drawable) -> list[_Block]:
    """All layers from the input to the head; methods on tensors of no single site follow, then those on
    logits."""
    found: list[_Block] = []
    for stack in graph.spec.stacks:
        at: dict[int | None, list[tuple[str, tuple[Tree, ...]]]] = {}
        for site in graph.sites():
            if site.stack == stack.name:
                at.setdefault(site.layer, []).append((site.name, graph.trees_at(site)))
        if None in at:
            found.append(_Block(f"{stack.name} input", (), tuple(at[None])))
        for layer in range(stack.layers):
            places, last = tuple(at.get(layer, ())), found[-1] if found else None
            if last and last.layers and (last.stack, last.places) == (stack.name, places):
                found[-1] = _Block(stack.name, (*last.layers, layer), places)
            else:
                found.append(_Block(stack.name, (layer,), places))
    for title, name, on_logits in (("backbone tensors", "weights", False), ("head", "logits", True)):
        trees = []
        for tree in graph.trees:
            entries = tuple(graph.leaves(tree))
            if not any(e.sites for e in entries) and any("logits" in e.ways for e in entries) == on_logits:
                trees.append(tree)
        if trees:
            found.append(_Block(title, (), ((name, tuple(trees)),)))
    return found


def _lines(graph: Drawable) -> list[tuple[str, list[tuple[str, str]]]]:
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


def draw_text(graph: Drawable) -> str:
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


def draw_mermaid(graph: Drawable) -> str:
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
    """A chip (one entry, coloured by its method), or a frame around the children of a composition."""

    text: str
    full: str
    colour: int | None
    children: tuple[_Box, ...] = ()

    @property
    def height(self) -> int:
        if self.colour is not None:
            return _CHIP
        return _PILL + sum(c.height + _GAP for c in self.children) + _PAD

    @property
    def width(self) -> int:
        return max([_text_width(self.text), *(c.width + 2 * _PAD for c in self.children)])

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


def _boxes(graph: Drawable, trees: Iterable[Tree], *, numbered: bool = False) -> Iterator[_Box]:
    """What acts at a site. A chip says `lora · rank 8`, with the entry's name first where the recipe gives it
    one; children are numbered where their order counts."""
    methods = list(dict.fromkeys(e.method.name for e in graph.entries.values()))
    named = {e.name for e in graph.recipe.entries() if e.item.alias is not None}
    for i, tree in enumerate(trees, 1):
        number = f"{i}. " if numbered else ""
        if isinstance(tree, Leaf):
            entry = graph.entries[tree.name]
            size = getattr(entry.method, "size_field", None)
            text = f"{entry.name}: " * (tree.name in named) + entry.method.name
            text = short(f"{text} · {size} {getattr(entry.method.config, size)}" if size else text, 120)
            yield _Box(number + text, text, methods.index(entry.method.name) % len(_HUES))
        else:
            inner = _boxes(graph, tree.children, numbered=get_composition(tree.kind).traits.ordered)
            kind = short(tree.kind, 40)
            yield _Box(number + kind, f"{kind} {short(tree.name, 80)}", None, tuple(inner))


def _edges(
    graph: Drawable, left: int, places: Sequence[Mapping[str, Sequence[_Box]]]
) -> dict[str, tuple[int, int]]:
    """Left edge and width of each site's column, in the order of the forward pass."""
    order = {s.name: i for i, s in reversed(list(enumerate(graph.spec.sites)))}
    found: dict[str, tuple[int, int]] = {}
    for name in sorted({name for at in places for name in at}, key=lambda n: order.get(n, len(order))):
        wide = max(_text_width(name), *(box.width + 2 for at in places for box in at.get(name, ())))
        found[name] = (left, min(_WIDE, max(_NARROW, wide)))
        left += found[name][1] + _BETWEEN
    return found


def draw_svg(graph: Drawable) -> str:
    """The graph as an SVG for a file or inside a page, input at the top.

    A row is a layer, or consecutive layers that carry the same; a column is a kind of site. Boxes at a site
    act there, side by side unless they stand in a frame. Every text is escaped.

    Alone it is dark on white. A page sets `--graph-ink` and `--graph-ground` to its own colours
    (`currentColor` and `none`).
    """
    rows = [(block, {site: list(_boxes(graph, ts)) for site, ts in block.places}) for block in _blocks(graph)]
    labels = [
        block.stack if not block.layers else f"{block.stack} " * graph.spec.encoder_decoder + block.span
        for block, _ in rows
    ]
    trunk = max(_text_width(label) for label in [*labels, "head"])
    layers = _edges(graph, trunk + 20, [places for block, places in rows if block.layers])
    y, right, shapes = _PAD, trunk + 20 + _text_width(_NOTHING), []
    for label, (block, places) in zip(labels, rows, strict=True):
        edges = layers if block.layers else _edges(graph, trunk + 20, [places])
        middle = y + (_PILL if places else _BARE) // 2
        radius, kind, note = (5, "node", "") if places else (3, "node bare", ": as before")
        shapes += [
            f'<g class="row"><title>{html.escape(block.title)}{note}</title>',
            f'<circle class="{kind}" cx="{trunk}" cy="{middle}" r="{radius}"/>',
            f'<text class="label" x="{trunk - 12}" y="{middle + 4}" text-anchor="end">'
            f"{html.escape(label)}</text>",
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
    told = (f"{title}: " + ", ".join(f"{site} ← {x}" for site, x in lines) for title, lines in _lines(graph))
    said = html.escape(printable("; ".join(told)), quote=True) or _NOTHING
    return (
        f'<svg class="composition-graph" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-label="{said}">'
        f'<style>{_STYLE}</style><rect class="ground" width="{width}" height="{height}"/>'
        f'<line x1="{trunk}" y1="{_PAD}" x2="{trunk}" y2="{y}"/>{"".join(shapes)}'
        f'<path class="tip" d="M{trunk - 6} {y - 2} h12 l-6 10 z"/>'
        f'<text class="label" x="{trunk - 8}" y="{y + 10}" text-anchor="end">head</text></svg>'
    )


def draw_box(graph: Drawable, title: str, *parts: str, note: str) -> str:
    """The graph below `parts` in a box for a notebook, in the page's own colours (see `autopeft.display`)."""
    colours = "--graph-ink:currentColor;--graph-ground:none"
    drawn = f'<div style="overflow:auto;max-height:40em;{colours}">{draw_svg(graph)}</div>'
    return box(title, *parts, drawn, note=note)
