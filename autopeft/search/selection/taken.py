"""What the winner and the baselines take of the machine: predicted before training, and measured in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import Recipe
from autopeft.resources import FIGURES, Limits, Resources
from autopeft.spec import BackboneSpec

__all__ = ["Taken", "taken"]


@dataclass(frozen=True)
class Taken:
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
        said = [self._figure(f.name) for f, _ in limits.set()]
        if limits.serve:
            reason, way = self.predicted.unservable, limits.serve
            said.append(
                f"can be served as {way}" if reason is None else f"cannot be served as {way}: {reason}"
            )
        if limits.quantize and self.predicted.on_packed:
            said.append(f"not for a backbone in {limits.quantize}: {self.predicted.on_packed}")
        told = "; ".join(part for part in said if part)
        return f"{self.name}: {told}.{self._over(limits)}" if told else ""

    def _figure(self, name: str) -> str:
        figure = next(f for f in FIGURES if f.name == name)
        before, after = getattr(self.predicted, name), getattr(self.measured, name)
        if before is None and after is None:
            return ""
        if after is None:
            return f"{figure.title} {figure.text(before)} predicted, not measured"
        if before is None:
            return f"{figure.title} {figure.text(after)} measured"
        off = f", {after / before - 1:+.0%}" if before else ""
        return f"{figure.title} {figure.text(before)} predicted, {figure.text(after)} measured{off}"

    def _over(self, limits: Limits) -> str:
        known = self.predicted.to_dict() | self.measured.to_dict()
        # Whether it can be served is said by then.
        broken = replace(limits, serve=None, quantize=None).broken(Resources(**known))
        return f" It is over the limit: {'; '.join(broken)}." if broken else ""

    def to_dict(self, limits: Limits) -> dict[str, Any]:
        """Everything that is known, and in words what is limited."""
        found = {
            "name": self.name,
            "predicted": self.predicted.to_dict(),
            "measured": self.measured.to_dict(),
        }
        return {**found, "text": self.sentence(limits) or None}


def taken(
    recipes: Iterable[tuple[str, Mapping[str, Any], Mapping[str, float]]],
    spec: BackboneSpec,
    predict: Callable[[CompositionGraph], Resources],
) -> tuple[Taken, ...]:
    """What recipes take, by name, recipe and measurements. A baseline that is no single recipe has an empty
    one, and is measured alone; so is one that has no graph."""
    found = []
    for name, recipe, measured in recipes:
        try:
            predicted = predict(build_graph(Recipe.from_dict(dict(recipe)), spec)) if recipe else Resources()
        except AutoPEFTError:
            predicted = Resources()
        found.append(Taken(name, predicted, Resources.from_dict(measured)))
    return tuple(found)
