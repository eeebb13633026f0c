"""The dimensions of a search space: categorical, whole numbers or real ones."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autopeft.errors import RecipeError

__all__ = ["Parameter", "ParameterKind", "every_point"]

ParameterKind = Literal["categorical", "int", "float"]


@dataclass(frozen=True)
class Parameter:
    """One dimension of a bound space.

    Attributes:
        name: unique and stable (`lora.rank`, `layer_3.on`, `learning_rate`).
        kind: `categorical` (one of `choices`), `int` or `float` (from `low` to `high`, both included).
        choices: values in file order: `None`, bool, int, float or str.
        log: drawn on a logarithmic scale.
        steps: training steps that `low` is meant for in the file: shorter trainings begin higher. `None`
            where it holds for any.
        sizes: for choices that are all numbers or shares of the width, the number of each on this backbone.
    """

    name: str
    kind: ParameterKind
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    steps: int | None = None
    sizes: tuple[float, ...] = ()

    @property
    def ordered(self) -> bool:
        """Whether the values have an order: numbers, or choices whose sizes rise or fall."""
        return self.kind != "categorical" or (
            len(self.sizes) > 1 and list(self.sizes) in (sorted(self.sizes), sorted(self.sizes, reverse=True))
        )

    @property
    def cardinality(self) -> int:
        """Number of values; 1 for a continuous parameter."""
        if self.kind == "categorical":
            return len(self.choices)
        return int(self.high) - int(self.low) + 1 if self.kind == "int" else 1

    def check(self, value: Any) -> None:
        """Raise `RecipeError` unless `value` belongs to the parameter."""
        if self.kind == "categorical":
            if not any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in self.choices):
                raise RecipeError(f"{self.name}={value!r} is not one of {list(self.choices)}.")
            return
        fits = isinstance(value, int if self.kind == "int" else (int, float)) and not isinstance(value, bool)
        if not fits or not self.low <= value <= self.high:
            what = "a whole number" if self.kind == "int" else "a number"
            raise RecipeError(f"{self.name}={value!r} is not {what} from {self.low} to {self.high}.")

    def sample(self, rng: random.Random) -> Any:
        """A value drawn uniformly, or log-uniformly."""
        if self.kind == "categorical":
            return rng.choice(self.choices)
        if not self.log:
            return (
                rng.randint(int(self.low), int(self.high))
                if self.kind == "int"
                else rng.uniform(self.low, self.high)
            )
        low, high = (self.low - 0.5, self.high + 0.5) if self.kind == "int" else (self.low, self.high)
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        bounded = min(max(drawn, self.low), self.high)
        return round(bounded) if self.kind == "int" else bounded

    @property
    def middle(self) -> Any:
        """The value in the middle of the range or of the list of choices; a switch is on."""
        if self.kind == "categorical":
            on = any(choice is True for choice in self.choices)
            return True if on else self.choices[len(self.choices) // 2]
        mean = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return int(mean) if self.kind == "int" else mean


def every_point(parameters: Sequence[Parameter], most: int) -> Iterator[dict[str, Any]]:
    """All points of a space; none where it has more than `most`, or a continuous range."""
    if any(p.kind == "float" and p.low < p.high for p in parameters):
        return
    if math.prod(p.cardinality for p in parameters) > most:
        return
    whole = {p.name: range(int(p.low), int(p.high) + 1) for p in parameters if p.kind == "int"}
    values = [p.choices if p.kind == "categorical" else whole.get(p.name, (p.low,)) for p in parameters]
    for point in itertools.product(*values):
        yield {p.name: value for p, value in zip(parameters, point, strict=True)}
