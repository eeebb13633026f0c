"""The graph as text, Mermaid and SVG. Layers that carry the same modules at the same sites are drawn once."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from autopeft.display import box
from autopeft.graph.tree import Entry, Leaf, Tree
from autopeft.spec import BackboneSpec, Site

__all__ = [
    "Block",
    "Drawable",
    "blocks",
    "draw_box",
    "draw_mermaid",
    "draw_svg",
    "draw_text",
    "without_sites",
]

_NOTHING = "(no modules: the head alone trains)"


class Drawable(Protocol):
    """What drawings look at: a `CompositionGraph`."""

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
class Block:
    """Consecutive layers of a stack (or what belongs to no layer) with what acts at each site, in forward
    order."""

    stack: str
    layers: tuple[int, ...]
    rows: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        if not self.layers:
            return self.stack
        first, last = self.layers[0], self.layers[-1]
        span = f"layer {first}" if first == last else f"layers {first}-{last}"
        return f"{self.stack} · {span}"


def _label(graph: Drawable, tree: Tree) -> str:
    if not isinstance(tree, Leaf):
        return f"{tree.kind}({', '.join(_label(graph, c) for c in tree.children)})"
    entry = graph.entries[tree.name]
    size = getattr(entry.method, "size_field", None)
    shown = f"[{size} {getattr(entry.method.config, size)}]" if size else ""
    return f"{entry.name}{shown}"


def _rows(graph: Drawable, sites: Sequence[Site]) -> tuple[tuple[str, str], ...]:
    return tuple((s.name, " + ".join(_label(graph, t) for t in graph.trees_at(s))) for s in sites)


def blocks(graph: Drawable) -> list[Block]:
    """What is drawn, from the input upwards; methods on tensors of no single site come last, then those on
    logits."""
    found: list[Block] = []
    sites = graph.sites()
    for stack in graph.spec.stacks:
        ground = _rows(graph, [s for s in sites if s.stack == stack.name and s.layer is None])
        if ground:
            found.append(Block(f"{stack.name} input", (), ground))
        for layer in range(stack.layers):
            rows = _rows(graph, [s for s in sites if s.stack == stack.name and s.layer == layer])
            last = found[-1] if found else None
            if (
                rows
                and last
                and last.stack == stack.name
                and last.rows == rows
                and last.layers[-1:] == (layer - 1,)
            ):
                found[-1] = Block(stack.name, (*last.layers, layer), rows)
            elif rows:
                found.append(Block(stack.name, (layer,), rows))
    for title, name, trees in (
        ("backbone tensors", "weights", without_sites(graph, on_logits=False)),
        ("head", "logits", without_sites(graph, on_logits=True)),
    ):
        if trees:
            found.append(Block(title, (), tuple((name, _label(graph, t)) for t in trees)))
    return found


def without_sites(graph: Drawable, *, on_logits: bool) -> list[Tree]:
    """The trees that touch no site: those on logits, or those on tensors."""
    return [
        tree
        for tree in graph.trees
        if not any(e.sites for e in graph.leaves(tree))
        and any("logits" in e.ways for e in graph.leaves(tree)) == on_logits
    ]


def draw_text(graph: Drawable) -> str:
    """The graph as lines for a terminal."""
    drawn = blocks(graph)
    if not drawn:
        return _NOTHING
    width = max(len(site) for b in drawn for site, _ in b.rows)
    lines: list[str] = []
    for block in drawn:
        lines.append(block.title)
        for i, (site, label) in enumerate(block.rows):
            arm = "└─" if i == len(block.rows) - 1 else "├─"
            lines.append(f"  {arm} {site.ljust(width)} ← {label}")
    return "\n".join(lines)


def _quoted(label: str) -> str:
    """A label inside Mermaid's quotes: names come from recipes, so nothing in them may end the string."""
    return html.escape(label, quote=True).replace("[", "&#91;").replace("]", "&#93;")


def draw_mermaid(graph: Drawable) -> str:
    """The graph as a Mermaid flowchart, bottom to top."""
    lines = ["flowchart BT"]
    previous: str | None = None
    for b, block in enumerate(blocks(graph)):
        lines.append(f'  subgraph B{b}["{_quoted(block.title)}"]')
        for r, (site, label) in enumerate(block.rows):
            lines.append(f'    B{b}M{r}["{_quoted(label)}"] --> B{b}S{r}("{_quoted(site)}")')
        lines.append("  end")
        if previous is not None:
            lines.append(f"  {previous} --> B{b}")
        previous = f"B{b}"
    return "\n".join(lines)


_ROW, _PAD, _GAP, _LEAST = 26, 12, 8, 300
_CHARACTER = 6.8  # pixels of a character of 12 pixels, about: fonts differ
# A page sets the variables where its ground is dark. Every rule names the drawing, which may lie in a page.
_STYLE = (
    ".composition-graph text{font:12px sans-serif;fill:var(--graph-text,#1f2937)}"
    ".composition-graph .title{font-weight:600}"
    ".composition-graph .block{fill:var(--graph-block,#f3f4f6);stroke:var(--graph-block-line,#d1d5db)}"
    ".composition-graph .site{fill:var(--graph-site,#dbeafe);stroke:var(--graph-site-line,#93c5fd)}"
)


def _pixels(texts: Iterable[str]) -> int:
    """Width of the longest text."""
    return math.ceil(_CHARACTER * max(map(len, texts), default=0))


def draw_svg(graph: Drawable) -> str:
    """The graph as a stand-alone SVG, input at the bottom, no wider than its words.

    In a page the colours follow the variables `--graph-text`, `--graph-block`, `--graph-block-line`,
    `--graph-site` and `--graph-site-line`.
    """
    drawn = blocks(graph)
    rows = [row for block in drawn for row in block.rows]
    site_width = _pixels(site for site, _ in rows) + 2 * _GAP
    inner = max(
        _LEAST - 2 * _PAD,
        2 * _PAD + site_width + 2 * _GAP + _pixels(f"← {label}" for _, label in rows),
        2 * _PAD + _pixels([*(block.title for block in drawn), _NOTHING if not drawn else ""]),
    )
    y, width = _PAD, inner + 2 * _PAD
    shapes: list[str] = []
    for block in reversed(drawn):
        height = _ROW * (len(block.rows) + 1) + _PAD
        shapes.append(f'<rect class="block" x="{_PAD}" y="{y}" width="{inner}" height="{height}" rx="8"/>')
        shapes.append(f'<text class="title" x="{2 * _PAD}" y="{y + 18}">{html.escape(block.title)}</text>')
        for i, (site, label) in enumerate(reversed(block.rows)):
            top = y + _ROW * (i + 1)
            box = f'x="{2 * _PAD}" y="{top}" width="{site_width}" height="20" rx="4"'
            shapes.append(f'<rect class="site" {box}/>')
            shapes.append(f'<text x="{2 * _PAD + _GAP}" y="{top + 14}">{html.escape(site)}</text>')
            left = 2 * _PAD + site_width + _GAP
            shapes.append(f'<text x="{left}" y="{top + 14}">← {html.escape(label)}</text>')
        y += height + _PAD
    if not drawn:
        shapes.append(f'<text x="{_PAD}" y="{y + 14}">{_NOTHING}</text>')
        y += _ROW + _PAD
    said = html.escape(
        "; ".join(f"{b.title}: " + ", ".join(f"{s} ← {label}" for s, label in b.rows) for b in drawn)
    )
    return (
        f'<svg class="composition-graph" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
        f'viewBox="0 0 {width} {y}" role="img" aria-label="{said or _NOTHING}">'
        f"<style>{_STYLE}</style>{''.join(shapes)}</svg>"
    )


# Half-transparent colours suit a light and a dark ground.
_IN_PAGE = (
    "overflow:auto;max-height:40em;--graph-text:currentColor;--graph-block:rgba(128,128,128,.1);"
    "--graph-block-line:rgba(128,128,128,.45);--graph-site:rgba(80,140,230,.2);--graph-site-line:rgba(80,140,230,.6)"
)


def draw_box(graph: Drawable, title: str, *parts: str, note: str) -> str:
    """The graph below `parts` in a box for a notebook, in the page's own colours (see `autopeft.display`)."""
    return box(title, *parts, f'<div style="{_IN_PAGE}">{draw_svg(graph)}</div>', note=note)
