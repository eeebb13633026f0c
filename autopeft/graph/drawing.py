"""The graph as text, Mermaid and SVG. Layers that carry the same modules at the same sites are drawn once."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.graph.core import CompositionGraph
from autopeft.graph.tree import Leaf, Tree
from autopeft.spec import Site

__all__ = ["Block", "blocks", "draw_mermaid", "draw_svg", "draw_text"]


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


def _label(graph: CompositionGraph, tree: Tree) -> str:
    if not isinstance(tree, Leaf):
        return f"{tree.kind}({', '.join(_label(graph, c) for c in tree.children)})"
    entry = graph.entries[tree.name]
    size = getattr(entry.method, "size_field", None)
    shown = f"[{size} {getattr(entry.method.config, size)}]" if size else ""
    return f"{entry.name}{shown}"


def _rows(graph: CompositionGraph, sites: Sequence[Site]) -> tuple[tuple[str, str], ...]:
    return tuple((s.name, " + ".join(_label(graph, t) for t in graph.trees_at(s))) for s in sites)


def blocks(graph: CompositionGraph) -> list[Block]:
    """What is drawn, from the input upwards; methods on tensors of no single site come last."""
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
    tensors = [t for t in graph.trees if not any(e.sites for e in graph.leaves(t))]
    if tensors:
        found.append(Block("backbone tensors", (), tuple(("weights", _label(graph, t)) for t in tensors)))
    return found


def draw_text(graph: CompositionGraph) -> str:
    """The graph as lines for a terminal."""
    drawn = blocks(graph)
    if not drawn:
        return "(no modules: the head alone trains)"
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


def draw_mermaid(graph: CompositionGraph) -> str:
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


_ROW, _PAD, _SITE, _WIDTH = 26, 12, 150, 640


def draw_svg(graph: CompositionGraph) -> str:
    """The graph as a stand-alone SVG, input at the bottom."""
    drawn = blocks(graph)
    y, inner = _PAD, _WIDTH - 2 * _PAD
    shapes: list[str] = []
    for block in reversed(drawn):
        height = _ROW * (len(block.rows) + 1) + _PAD
        shapes.append(f'<rect class="block" x="{_PAD}" y="{y}" width="{inner}" height="{height}" rx="8"/>')
        shapes.append(f'<text class="title" x="{2 * _PAD}" y="{y + 18}">{html.escape(block.title)}</text>')
        for i, (site, label) in enumerate(reversed(block.rows)):
            top = y + _ROW * (i + 1)
            shapes.append(f'<rect class="site" x="{2 * _PAD}" y="{top}" width="{_SITE}" height="20" rx="4"/>')
            shapes.append(f'<text x="{2 * _PAD + 8}" y="{top + 14}">{html.escape(site)}</text>')
            shapes.append(f'<text x="{2 * _PAD + _SITE + 14}" y="{top + 14}">← {html.escape(label)}</text>')
        y += height + _PAD
    style = (
        "text{font:12px sans-serif;fill:#1f2937}.title{font-weight:600}.block{fill:#f3f4f6;stroke:#d1d5db}"
        ".site{fill:#dbeafe;stroke:#93c5fd}"
    )
    box = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">'
        f"<style>{style}</style>{''.join(shapes)}</svg>"
    )
