"""What of a graph decides its cost: how many layers run and are differentiated, and what its entries do.

A cost is a sum over features, each with a coefficient that is fitted to measurements
(`autopeft.resources.fit`). Features are counts of numbers that are read, written or multiplied, so that
their coefficients are those of the machine and not of a recipe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from autopeft.graph import CompositionGraph, Entry, Node, first_layer, is_rowwise_in
from autopeft.method import Interim
from autopeft.spec import BackboneSpec, Site

__all__ = ["Features", "Shape", "features_of", "training_state"]

Features = Mapping[str, float]
"""A feature's name to its value.

What an entry does is named `way/method:what`: what has to be done is the same for all methods that act in one
way, and how well a method does it is its own."""

_WAYS = ("weight", "kv", "scores", "hook", "region", "logits")
_WHOLE = ("k", "v", "qkv", "cross_k", "cross_v")  # a narrow last layer computes these for every token
_STATE = 4  # copies of a trained parameter while it trains: itself, its gradient and two moments
_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """A batch: `rows` of `tokens` tokens each; `at_once` of the rows go through the model together."""

    rows: int
    tokens: int
    at_once: int


def features_of(
    graph: CompositionGraph, shape: Shape, *, trunk: bool = True, inference: bool = False
) -> Features:
    """The features of a training step, or of a forward of the whole model.

    Args:
        trunk: whether the layers below everything that is altered are answered from a store. Without, they
            run, as all of them do at inference.
        inference: whether it is for a forward of the whole model.
    """
    spec = graph.spec
    depth = first_layer(graph)
    layers = sum(stack.layers for stack in spec.stacks)
    longer = 1 + _prompt_rows(graph) / shape.tokens
    found: defaultdict[str, float] = defaultdict(float, {"step": 1.0, "trained": 0.0})
    active, narrow = layers - depth, False
    dropout = graph.recipe.training.dropout and not inference
    if dropout:  # nothing is left out then, as its draws belong to the training
        trunk, found["dropout"] = False, longer * layers
    if active:
        end = spec.stacks[-1]
        narrow = not (inference or dropout) and is_rowwise_in(graph, end.name, end.layers - 1)
        found["layers"] = longer * (active - 1)
        found["last"] = longer * narrow
        found["last, all positions"] = longer * (not narrow)
    if depth == 0:
        found["embeddings"] = longer
    if not trunk:
        found["layers below"] = longer * depth
    tokens = shape.rows * shape.tokens * longer

    def tokens_at(site: Site) -> float:
        """Behind the keys and values of a narrow last layer there is the read position of each row."""
        last = (site.stack, site.layer) == (spec.stacks[-1].name, spec.stacks[-1].layers - 1)
        return shape.rows if narrow and last and site.name not in _WHOLE else tokens

    for entry in graph.entries.values():
        _add_entry(found, entry, _places(entry, spec, tokens, tokens_at))
    for node in graph.nodes():
        _add_node(found, graph, node, tokens)
    return dict(found)


def training_state(graph: CompositionGraph, head: int, *, interim: bool = True, added: bool = False) -> int:
    """Bytes of what trains, with its gradients and the optimizer's moments, where they are most: at the end,
    or while one of the entries searches or calibrates (see `Interim`), which they do in turn. Frozen entries
    have their values alone. Without `interim` those at the end; `added` are those beside what is attached
    itself, which is there before."""
    numbers = (_STATE - added) * (graph.parameter_count().trained + head)
    frozen = [entry.count.deployed for entry in graph.entries.values() if entry.frozen and not added]
    trains = [entry for entry in graph.entries.values() if interim and not entry.frozen]
    sources = {ref.name: len(ref.item.start) for ref in graph.recipe.entries()}
    more = [_more_meanwhile(entry, graph.spec, sources[entry.name]) for entry in trains]
    return _BYTES * (numbers + sum(frozen) + max((0, *more)))


def _more_meanwhile(entry: Entry, spec: BackboneSpec, sources: int) -> int:
    """By how many numbers an entry with so many `sources` has more for a while than at the end."""
    interim: Any = getattr(entry.method, "interim", None)
    if interim is None:
        return 0
    found: Interim = interim(entry.sites, spec)
    held = found.held + sources * found.of_each_source
    return _STATE * (found.trained - entry.count.trained) + held


def _prompt_rows(graph: CompositionGraph) -> float:
    """Rows that prompts put in front of each text; those of single layers as their mean over the layers."""
    return sum(
        float(getattr(entry.method.config, getattr(entry.method, "size_field", "length"), 0))
        * (len(entry.sites) / graph.spec.stacks[0].layers if entry.traits.level == "layers" else 1)
        for entry in graph.entries.values()
        if entry.traits.changes_length
    )


def _add_entry(found: defaultdict[str, float], entry: Entry, places: Sequence[_Place]) -> None:
    """Calls, numbers read and written at the sites, products with its own parameters, and, where it acts on
    weights, the weights made anew and their gradients."""
    name = f"{_way(entry)}/{entry.method.name}"
    found[f"{name}:places"] += len(places) or 1
    found[f"{name}:values"] += sum(p.tokens * (p.inside + p.outside) for p in places)
    # Each place as if it had the same share of the parameters. A map of rank r has r numbers for each one
    # that goes in or out, also where these are drawn and do not train (VeRA).
    share, rank = entry.count.deployed / max(1, len(places)), getattr(entry.method.config, "rank", 0)
    found[f"{name}:products"] += sum(p.tokens * max(share, rank * (p.inside + p.outside)) for p in places)
    # What only training has works on its own few rows; what it costs is its gradients and its update.
    found["trained"] += entry.count.trained
    if "weight" in entry.ways:
        found[f"{name}:weights"] += float(sum(p.inside * p.outside for p in places))
        found[f"{name}:weight products"] += sum(p.tokens * p.inside * p.outside for p in places)


def _way(entry: Entry) -> str:
    """The costliest of the ways in which an entry acts."""
    return next((way for way in _WAYS if way in entry.ways), "prompt")


class _Place(NamedTuple):
    """Where an entry acts: tokens that pass, and widths of what goes in and out."""

    tokens: float
    inside: int
    outside: int


def _places(
    entry: Entry, spec: BackboneSpec, tokens: float, tokens_at: Callable[[Site], float]
) -> list[_Place]:
    """The places of an entry; of one on tensors of the model, each tensor."""
    if entry.sites:
        return [_Place(tokens_at(site), *_widths(site)) for site in entry.sites]
    if "logits" in entry.ways:
        return [] if spec.logits is None else [_Place(tokens, spec.logits.hidden, spec.logits.width)]
    tensors = [t for t in spec.tensors if t.role in ("weight", "embedding")]
    return [_Place(tokens, t.shape[-1], t.size // t.shape[-1]) for t in tensors]


def _widths(site: Site) -> tuple[int, int]:
    return max(site.in_features, 1), max(site.out_features, site.kv_features, 1)


def _add_node(found: defaultdict[str, float], graph: CompositionGraph, node: Node, tokens: float) -> None:
    spec: Any = graph.child_spec(node)
    children = len(node.children)
    name = f"composition/{node.kind}"
    found[f"{name}:places"] += children * len(spec.sites)
    found[f"{name}:values"] += tokens * children * sum(sum(_widths(site)) for site in spec.sites)
    found[f"{name}:products"] += tokens * node.count.trained
    found["trained"] += node.count.trained
