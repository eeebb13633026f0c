"""The composition graph as an inline SVG, layer by layer, input at the top.

Rows are layers, columns are the sites that carry something, in the order of the forward pass. Every size is
fixed, so that 48 layers are as readable as 6: the page scrolls. Colours come from the page's style sheet;
every box has its words.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from autopeft.composition import get_composition
from autopeft.graph import CompositionGraph, Entry, Leaf, Tree
from autopeft.graph.drawing import without_sites
from autopeft.report.html.values import shown
from autopeft.spec import Site

__all__ = ["draw_graph"]

_CHIP, _GAP, _PAD, _PILL = 22, 4, 6, 20
_CHARACTER = 6.7
_NARROW, _WIDE = 96, 236
_LEFT, _ROW_GAP, _BARE = 92, 14, 16
_COLOURS = 8


@dataclass
class _Box:
    """A chip (one entry) or a composition around boxes."""

    text: str
    full: str
    colour: int | None = None
    children: list[_Box] = field(default_factory=list)

    @property
    def height(self) -> int:
        if self.colour is not None:
            return _CHIP
        return _PILL + sum(c.height + _GAP for c in self.children) + _PAD

    @property
    def width(self) -> int:
        return max([_text_width(self.text), *(c.width + 2 * _PAD for c in self.children)])


@dataclass(frozen=True)
class _Row:
    """A layer, or what lies in none; `cells` maps a site's name to the boxes on it."""

    label: str
    cells: dict[str, list[_Box]]
    stack: str
    layer: int | None

    @property
    def height(self) -> int:
        if not self.cells:
            return _BARE
        return max(_PILL + sum(b.height + _GAP for b in boxes) for boxes in self.cells.values()) + _PAD


def _columns(text: str) -> int:
    """Characters of a text, wide East Asian ones counted twice."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _text_width(text: str) -> int:
    """Pixels that a box needs for a text, about: fonts differ."""
    return int(_columns(text) * _CHARACTER) + 2 * _PAD + 6


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _chip_text(entry: Entry, named: bool) -> str:
    """`lora · rank 8`, with the entry's name first where the recipe gives it one."""
    method = entry.method
    size = getattr(method, "size_field", None)
    what = f"{method.name} · {size} {getattr(method.config, size)}" if size else str(method.name)
    return f"{entry.name}: {what}" if named else what


class _Artist:
    def __init__(self, graph: CompositionGraph) -> None:
        self.graph = graph
        methods = dict.fromkeys(e.method.name for e in graph.entries.values())
        self.colours = {name: i % _COLOURS for i, name in enumerate(methods)}
        self.named = {e.name for e in graph.recipe.entries() if e.item.alias is not None}
        self.rows = self._rows()
        layers = [row for row in self.rows if row.layer is not None]
        self.grid = self._columns(layers)
        self.own = {row.label: self._columns([row]) for row in self.rows if row.layer is None}
        ends = [x + wide for grid in (self.grid, *self.own.values()) for x, wide in grid.values()]
        self.width = max([240, *(end + _ROW_GAP for end in ends)])

    def _columns(self, rows: Sequence[_Row]) -> dict[str, tuple[int, int]]:
        """Left edge and width of every site's column; sites come in the order of the forward pass."""
        cells = [(name, boxes) for row in rows for name, boxes in row.cells.items()]
        order = {s.name: i for i, s in reversed(list(enumerate(self.graph.spec.sites)))}
        found: dict[str, tuple[int, int]] = {}
        x = _LEFT
        for name in sorted({name for name, _ in cells}, key=lambda n: order.get(n, len(order))):
            boxes = [b for other, at in cells if other == name for b in at]
            wide = max(_text_width(name), *(b.width for b in boxes))
            found[name] = (x, min(_WIDE, max(_NARROW, wide + 2)))
            x += found[name][1] + _ROW_GAP
        return found

    def _place(self, row: _Row, name: str) -> tuple[int, int]:
        return (self.grid if row.layer is not None else self.own[row.label])[name]

    def _box(self, tree: Tree) -> _Box:
        if isinstance(tree, Leaf):
            entry = self.graph.entries[tree.name]
            text = shown(_chip_text(entry, tree.name in self.named), 120)
            return _Box(text, text, self.colours[entry.method.name])
        children = [self._box(child) for child in tree.children]
        if get_composition(tree.kind).traits.ordered:
            for i, child in enumerate(children, 1):
                child.text = f"{i}. {child.text}"
        return _Box(shown(tree.kind, 40), f"{tree.kind} {shown(tree.name, 80)}", None, children)

    def _cells(self, sites: Sequence[Site]) -> dict[str, list[_Box]]:
        return {s.name: [self._box(t) for t in self.graph.trees_at(s)] for s in sites}

    def _rows(self) -> list[_Row]:
        graph, rows = self.graph, []
        used = graph.sites()
        for stack in graph.spec.stacks:
            prefix = f"{stack.name} " if graph.spec.encoder_decoder else ""
            ground = [s for s in used if s.stack == stack.name and s.layer is None]
            rows.append(_Row(f"{prefix}input", self._cells(ground), stack.name, None))
            for i in range(stack.layers):
                here = [s for s in used if s.stack == stack.name and s.layer == i]
                rows.append(_Row(f"{prefix}{i}", self._cells(here), stack.name, i))
        for name, column, on_logits in (("tensors", "backbone weights", False), ("head", "logits", True)):
            loose = without_sites(graph, on_logits=on_logits)
            if loose:
                rows.append(_Row(name, {column: [self._box(t) for t in loose]}, "", None))
        return rows

    def draw(self) -> str:
        y, shapes = _PAD, []
        start = y
        for row in self.rows:
            shapes.append(self._row(row, y))
            y += row.height + (_ROW_GAP if row.cells else 4)
        label = _escape(f"{len(self.graph.entries)} entries on {self.graph.spec.family}, layer by layer")
        trunk = f'<line class="trunk" x1="72" y1="{start}" x2="72" y2="{y}"/>'
        head = (
            f'<path class="tip" d="M66 {y - 2} L78 {y - 2} L72 {y + 8} Z"/>'
            f'<text class="layer" x="64" y="{y + 10}" text-anchor="end">head</text>'
        )
        return (
            f'<svg class="graph" xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{y + 18}" '
            f'viewBox="0 0 {self.width} {y + 18}" role="img" aria-label="{label}">'
            f"{trunk}{''.join(shapes)}{head}</svg>"
        )

    def _row(self, row: _Row, y: int) -> str:
        middle = y + (_PILL // 2 if row.cells else _BARE // 2)
        kind = "node" if row.cells else "node bare"
        title = f"layer {row.label}" if row.layer is not None else row.label
        number = "" if row.layer is None else row.layer
        out = [
            f'<g class="row" data-stack="{_escape(row.stack)}" data-layer="{number}">'
            f"<title>{_escape(title + ('' if row.cells else ': as it was'))}</title>",
            f'<circle class="{kind}" cx="72" cy="{middle}" r="{5 if row.cells else 3}"/>',
            f'<text class="layer" x="60" y="{middle + 4}" text-anchor="end">{_escape(row.label)}</text>',
        ]
        if row.cells:
            last = max(self._place(row, name)[0] for name in row.cells)
            out.append(f'<line class="wire" x1="78" y1="{middle}" x2="{last}" y2="{middle}"/>')
        for name, boxes in row.cells.items():
            out.append(self._cell(name, boxes, y, *self._place(row, name)))
        out.append("</g>")
        return "".join(out)

    def _cell(self, name: str, boxes: Sequence[_Box], y: int, x: int, width: int) -> str:
        out = [
            f'<rect class="site" x="{x}" y="{y}" width="{width}" height="{_PILL}" rx="10"/>',
            f'<text class="site-name" x="{x + width // 2}" y="{y + 14}" text-anchor="middle">'
            f"{_escape(name)}</text>",
        ]
        top = y + _PILL + _GAP
        for box in boxes:
            out.append(self._draw_box(box, x, top, width))
            top += box.height + _GAP
        return "".join(out)

    def _draw_box(self, box: _Box, x: int, y: int, width: int) -> str:
        room = max(4, int((width - 2 * _PAD) / _CHARACTER))
        text = box.text if _columns(box.text) <= room else _cut(box.text, room)
        kind = f"chip c{box.colour}" if box.colour is not None else "composition"
        name = "chip-name" if box.colour is not None else "composition-name"
        out = [
            f"<g><title>{_escape(box.full)}</title>"
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{box.height}" rx="5"/>',
            f'<text class="{name}" x="{x + _PAD + 2}" y="{y + 15}">{_escape(text)}</text>',
        ]
        top = y + _PILL
        for child in box.children:
            out.append(self._draw_box(child, x + _PAD, top, width - 2 * _PAD))
            top += child.height + _GAP
        return "".join(out) + "</g>"


def _cut(text: str, room: int) -> str:
    while text and _columns(text) > room - 1:
        text = text[:-1]
    return text + "…"


def draw_graph(graph: CompositionGraph) -> str:
    """The graph as an `<svg>` element to be put into a page; every text in it is escaped."""
    return _Artist(graph).draw()
