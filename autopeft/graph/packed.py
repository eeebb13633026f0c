"""Whether a graph works on a quantised backbone, whose weights are packed, known before any is loaded.

What acts on activations is added beside the packed maps. What alters or reads their weights (DoRA, masks,
intrinsic dimensions) would need them in full.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from autopeft.graph.core import CompositionGraph
from autopeft.graph.memo import Memo
from autopeft.graph.tree import Entry

__all__ = ["on_packed", "on_packed_entries"]

_KNOWN: Memo[tuple[str, ...], bool] = Memo(1 << 12)


def on_packed(graph: CompositionGraph) -> str | None:
    """Why a graph cannot act on a backbone whose linear maps in the layers are quantised, as part of a
    sentence; `None` where it can."""
    names = [entry.name for entry in _altering(graph)]
    if not names:
        return None
    return f"{', '.join(names)} would work on its packed weights"


def on_packed_entries(graph: CompositionGraph) -> int:
    """How many entries stand in the way, so that a search can tell what is nearer."""
    return sum(1 for _ in _altering(graph))


def _altering(graph: CompositionGraph) -> Iterator[Entry]:
    """The entries whose modules name a linear map of a layer among what they alter."""
    spec = graph.spec
    packed = {t.name for t in spec.tensors if t.role == "weight" and t.layer is not None}
    for entry in graph.entries.values():
        if "weight" not in entry.ways:
            continue
        method = entry.method
        key = (
            method.name,
            method.config.model_dump_json(),
            json.dumps([site.key for site in entry.sites]),
            f"{spec.family} {spec.parameters}",
        )
        alters = _KNOWN.get(key)
        if alters is None:
            with torch.random.fork_rng(devices=[]):
                module = method.build(entry.sites, spec)
            alters = any(
                target.tensor in packed if target.site is None else target.site.kind == "linear"
                for target in module.weight_targets()
            )
            _KNOWN.keep(key, alters)
        if alters:
            yield entry
