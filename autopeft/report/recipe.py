"""A recipe on a backbone, as tables: which entries sit where, layer by layer, and the four counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from autopeft.counting import Counts
from autopeft.errors import UsageError
from autopeft.graph import CompositionGraph, Leaf, Tree
from autopeft.hybrid import with_inputs
from autopeft.recipe import Recipe
from autopeft.report.sheet import Sheet
from autopeft.report.text import number, percent

__all__ = ["counts_sheet", "describe_graph", "entries_sheet", "inputs_sheet", "layers_sheet", "ranges"]


def ranges(layers: Iterable[int]) -> str:
    """Layer indices in short: `0-5, 8`."""
    runs: list[list[int]] = []
    for i in sorted(set(layers)):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def inputs_sheet(recipe: Recipe, runs: str | Path = "runs") -> Sheet:
    """Every input with where it lies, the hash of what is there, and whether the recipe allows that."""
    rows = []
    for name, item in recipe.inputs.items():
        try:
            _, found = with_inputs(recipe.model_copy(update={"inputs": {name: item}}), runs)
            state, sha256 = ("there" if item.sha256 is None else "as the recipe says"), found[name].sha256
        except UsageError as error:
            state, sha256 = str(error).partition("\n")[0], item.sha256 or "–"
        rows.append((name, str(item), state, sha256))
    return Sheet(
        ("input", "what", "state", "sha256"), tuple(rows), fold=frozenset({"what", "state", "sha256"})
    )


def entries_sheet(graph: CompositionGraph) -> Sheet:
    """Every entry with method, sites, layers, settings and size; compositions that have parameters too."""
    rows = []
    items = {ref.name: ref.item for ref in graph.recipe.entries()}
    for name, entry in graph.entries.items():
        elsewhere = "logits" if "logits" in entry.ways else "tensors"
        sites = ", ".join(dict.fromkeys(site.name for site in entry.sites)) or elsewhere
        stacks: dict[str, list[int]] = {}
        for site in entry.sites:
            if site.layer is not None:
                stacks.setdefault(site.stack, []).append(site.layer)
        layers = "; ".join(f"{stack} {ranges(found)}" for stack, found in stacks.items()) or "model"
        config = entry.method.config
        given: dict[str, Any] = config.model_dump(mode="json", exclude={"sites"}, exclude_defaults=True)
        settings = [f"{k}={v}" for k, v in given.items()] or ["defaults"]
        item = items[name]
        if item.start:
            rule = "" if item.merge is None else f", merged by {item.merge.how}"
            settings.append(f"{'frozen ' if item.frozen else ''}from {' and '.join(item.start)}{rule}")
        deployed, trained = number(entry.count.deployed), number(entry.count.trained)
        rows.append((name, entry.method.name, sites, layers, ", ".join(settings), deployed, trained))
    for node in graph.nodes():
        if node.count.trained:
            deployed, trained = number(node.count.deployed), number(node.count.trained)
            rows.append((node.name, node.kind, "–", "–", "–", deployed, trained))
    return Sheet(
        ("entry", "method", "sites", "layers", "settings", "deployed", "trained"),
        tuple(rows),
        right=frozenset({"deployed", "trained"}),
        fold=frozenset({"sites", "layers", "settings"}),
        drop=("trained", "method"),
        notes=() if rows else ("No entries: this recipe trains the head alone.",),
    )


def _tree_text(graph: CompositionGraph, tree: Tree) -> str:
    if isinstance(tree, Leaf):
        return tree.name
    return f"{tree.kind}({', '.join(_tree_text(graph, child) for child in tree.children)})"


def _layer_rows(graph: CompositionGraph) -> Iterator[tuple[str, int | None, tuple[str, ...]]]:
    """(stack, layer, what sits at each site) in the order of the forward pass."""
    cells: dict[tuple[str, int | None], list[str]] = {}
    for site in graph.sites():
        acting = " + ".join(_tree_text(graph, tree) for tree in graph.trees_at(site))
        cells.setdefault((site.stack, site.layer), []).append(f"{site.name}: {acting}")
    for (stack, layer), texts in cells.items():
        yield stack, layer, tuple(texts)


def layers_sheet(graph: CompositionGraph) -> Sheet:
    """What acts at each site, layer by layer; neighbouring layers that are the same share a row."""
    grouped: list[tuple[str, list[int], tuple[str, ...]]] = []
    for stack, layer, texts in _layer_rows(graph):
        if layer is None:
            grouped.append((stack, [], texts))
        elif grouped and grouped[-1][0] == stack and grouped[-1][2] == texts and grouped[-1][1]:
            grouped[-1][1].append(layer)
        else:
            grouped.append((stack, [layer], texts))
    rows = tuple((stack, ranges(layers) or "–", "   ".join(texts)) for stack, layers, texts in grouped)
    acting = "what acts at each site"
    return Sheet(("stack", "layers", acting), rows, fold=frozenset({"layers", acting}))


def counts_sheet(counts: Counts, *, budget: str | None = None) -> Sheet:
    """The four counts: deployed, trained, head, and both shares of the deployed figure."""
    rows = [
        (
            "deployed",
            number(counts.deployed),
            percent(counts.share),
            "what inference needs and training set: the budget's figure",
        ),
        ("trained", number(counts.trained), "", "what the optimizer holds, head left out"),
        ("head", number(counts.head), "", "the task head, always trained, counted apart"),
        (
            "with modules",
            number(counts.backbone + counts.deployed),
            percent(counts.share_with_modules),
            "backbone and modules; the share is deployed of this",
        ),
        ("backbone", number(counts.backbone), "", "unique parameters of the frozen base model"),
    ]
    notes = () if budget is None else (f"Budget: {budget}.",)
    return Sheet(
        ("figure", "parameters", "share", "meaning"),
        tuple(rows),
        notes=notes,
        right=frozenset({"parameters", "share"}),
        fold=frozenset({"meaning"}),
    )


def describe_graph(graph: CompositionGraph, counts: Counts) -> dict[str, Any]:
    """The same as data: the recipe, its entries and the counts."""
    items = {ref.name: ref.item for ref in graph.recipe.entries()}
    return {
        "recipe": graph.recipe.to_dict(),
        "family": graph.spec.family,
        "hash": graph.hash(),
        "counts": counts.to_dict(),
        "entries": [
            {
                "name": name,
                "method": entry.method.name,
                "sites": [site.path for site in entry.sites],
                "config": entry.method.config.model_dump(mode="json"),
                "from": list(items[name].start),
                "merge": None if (merge := items[name].merge) is None else merge.to_data(),
                "frozen": entry.frozen,
                "deployed": entry.count.deployed,
                "trained": entry.count.trained,
            }
            for name, entry in graph.entries.items()
        ],
    }
