"""What a recipe will take, said from its graph before it is trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

from autopeft.graph import (
    CompositionGraph,
    Entry,
    Memo,
    build_graph,
    on_packed,
    on_sharded,
    unmergeable,
    unservable,
)
from autopeft.recipe import Recipe
from autopeft.resources.calibration import Calibration
from autopeft.resources.files import Head, entry_bytes, file_bytes
from autopeft.resources.limits import Limits, Resources
from autopeft.spec import BackboneSpec

__all__ = ["Predictor", "StepCost"]

_KEPT = 1 << 12
_NUMBER = 4  # bytes of a parameter
_AROUND = 100  # bytes of the name, shape and place of a tensor
# Shares of a limit between which a size is counted exactly. What an entry takes beside its parameters may
# grow otherwise than its places do, so that a rough size may be a quarter too small.
_BELOW, _ABOVE = 0.75, 1.03


class Predictor:
    """Predicts from graphs.

    Args:
        limits: what is asked for: calling the predictor predicts no more than they need.
        head: parameters of the task head.
        calibration: what was measured of this machine; without it, time and memory are not predicted.
    """

    def __init__(self, limits: Limits, head: Head, calibration: Calibration | None = None) -> None:
        self.limits, self.head, self.calibration = limits, head, calibration
        self._files: Memo[str, int] = Memo(_KEPT)
        self._beside: Memo[tuple[Hashable, ...], float] = Memo(_KEPT)

    def __call__(self, graph: CompositionGraph, *, everything: bool = False) -> Resources:
        """What the limits need, or everything that can be said of a graph.

        Where a file is clearly inside its limit or over it, its size is a bound, save with `everything`. What
        takes measurements of this machine is said only where there is a calibration.
        """
        limit, file = self.limits.file, None
        if everything:
            file = self._file(graph)
        elif limit is not None:
            file = self._rough_file(graph, limit)
        way, here = self.limits.serve, self.calibration
        why = None if way is None else unservable(graph, way, head=bool(self.head))
        known = Resources(
            file=file,
            unmergeable=unmergeable(graph),
            unservable=why,
            on_packed=on_packed(graph) if self.limits.quantize else None,
            on_sharded=on_sharded(graph) if self.limits.processes > 1 else None,
        )
        if here is None:
            return known
        return replace(
            known,
            memory=here.predict_memory(graph),
            step_time=here.predict_step(graph),
            latency=here.predict_latency(graph),
        )

    def _rough_file(self, graph: CompositionGraph, limit: float) -> int:
        """From what each entry took beside its parameters when it was last built; exact near the limit."""
        total = sum(self._rough_entry(graph, entry) for entry in graph.entries.values())
        total += sum(_NUMBER * node.count.deployed + _AROUND for node in graph.nodes())
        total += sum(_NUMBER * p.numel() + _AROUND for p in self.head.values())
        return self._file(graph) if _BELOW < total / limit < _ABOVE else total

    def _rough_entry(self, graph: CompositionGraph, entry: Entry) -> int:
        method = entry.method
        # What a method keeps beside its parameters may be as wide as its sites.
        shapes = Counter((site.in_features, site.out_features) for site in entry.sites)
        times = math.gcd(*shapes.values())
        key = (
            method.name,
            method.config.model_dump_json(exclude={"sites"}),
            tuple(sorted((shape, n // times) for shape, n in shapes.items())),
        )
        places = len(entry.sites) + 1
        beside = self._beside.get(key)
        if beside is None:
            alone = entry_bytes(entry, graph.spec) - _NUMBER * entry.count.deployed
            beside = self._beside.keep(key, alone / places)
        return int(_NUMBER * entry.count.deployed + beside * places)

    def _file(self, graph: CompositionGraph) -> int:
        key = graph.hash()
        found = self._files.get(key)
        return self._files.keep(key, file_bytes(graph, self.head)) if found is None else found


class StepCost:
    """Predicts what a training step of a recipe takes, as a share of what one of a reference takes.

    Predictions rest on measurements of small recipes, one at a time. What a step took while other trainings
    ran beside it says more of these than of the recipe.

    Args:
        reference: the recipe whose step counts as 1.
        name: of the reference, for people.
    """

    def __init__(self, calibration: Calibration, spec: BackboneSpec, reference: Recipe, name: str) -> None:
        self._calibration, self._spec, self.name = calibration, spec, name
        self.seconds = self._seconds(reference)

    def __call__(self, recipe: Recipe) -> float:
        """The share.

        Raises:
            UsageError: the recipe does not fit the backbone.
        """
        return self._seconds(recipe) / self.seconds

    def _seconds(self, recipe: Recipe) -> float:
        return self._calibration.predict_step(build_graph(recipe, self._spec))
