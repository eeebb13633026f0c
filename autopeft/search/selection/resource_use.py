"""What the winner and the baselines take of the machine: predicted before training, and measured in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Resources
from autopeft.spec import BackboneSpec

__all__ = ["ResourceUse", "resource_uses"]


@dataclass(frozen=True)
class ResourceUse:
    """What one recipe takes.

    Attributes:
        name: of the winner or the baseline.
        predicted: from its graph.
        measured: in its runs; without times where their scores come from an earlier search elsewhere.
    """

    name: str
    predicted: Resources
    measured: Resources

    def sentence(self, limits: Limits) -> str:
        """What was predicted and measured of each figure that is limited, and which limits it is over; empty
        where nothing can be said."""
        said = []
        for figure, _ in limits.set():
            before, after = getattr(self.predicted, figure.name), getattr(self.measured, figure.name)
            predicted = "" if before is None else f"{figure.text(before)} predicted"
            if before is not None and after is None:
                said.append(f"{figure.title} {predicted}, not measured")
            elif before is None and after is not None:
                said.append(f"{figure.title} {figure.text(after)} measured")
            elif before is not None:
                off = f", {after / before - 1:+.0%}" if before else ""
                said.append(f"{figure.title} {predicted}, {figure.text(after)} measured{off}")
        if limits.serve:
            reason, way = self.predicted.unservable, limits.serve
            said.append(
                f"can be served as {way}" if reason is None else f"cannot be served as {way}: {reason}"
            )
        if limits.quantize and self.predicted.on_packed:
            said.append(f"not for a backbone in {limits.quantize}: {self.predicted.on_packed}")
        if not said:
            return ""
        # Whether it can be served is said by then.
        known = Resources(**(self.predicted.to_dict() | self.measured.to_dict()))
        broken = replace(limits, serve=None, quantize=None).broken(known)
        over = f" It is over the limit: {'; '.join(broken)}." if broken else ""
        return f"{self.name}: {'; '.join(said)}.{over}"


def resource_uses(
    recipes: Iterable[tuple[str, Mapping[str, Any], Mapping[str, float]]],
    spec: BackboneSpec,
    predict: Callable[[CompositionGraph], Resources],
) -> tuple[ResourceUse, ...]:
    """What recipes take, by name, recipe and measurements. A baseline that is no single recipe has an empty
    one, and is measured alone; so is one that has no graph."""
    found = []
    for name, recipe, measured in recipes:
        try:
            predicted = predict(build_graph(Recipe.from_dict(dict(recipe)), spec)) if recipe else Resources()
        except AutoPEFTError:
            predicted = Resources()
        found.append(ResourceUse(name, predicted, Resources.from_dict(measured)))
    return tuple(found)
