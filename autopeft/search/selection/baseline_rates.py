"""The learning rates that a baseline is tried with, and those that its sweep goes on to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autopeft.counting import Counts
from autopeft.recipe import Recipe
from autopeft.search.selection.baseline_recipes import BaselineRecipe

__all__ = ["Sweep", "rounded", "spread", "with_rates"]

# A sweep whose best rate is its first or last goes on by this factor, so many times at most.
_STRIDE, _FURTHER = 3.0, 2
# A rate that is hardly larger than the one before is not worth a training.
_LARGER = 1.2


class Sweep(NamedTuple):
    """A recipe with several learning rates in ascending order, none of them above `fastest`; with
    `middle_first` the others are tried only where the middle one is the best of all recipes."""

    title: str
    recipe: Mapping[str, Any]
    counts: Counts
    rates: Sequence[float]
    fastest: float
    middle_first: bool = False

    def member(self, rate: float) -> BaselineRecipe:
        """The recipe with one rate."""
        training = {**self.recipe.get("training", {}), "learning_rate": rate}
        recipe = Recipe.from_dict({**self.recipe, "training": training})
        return BaselineRecipe(self.title, recipe, self.counts)

    @property
    def first(self) -> Sequence[float]:
        """Rates that are tried in any case."""
        return self.rates[self._middle : self._middle + 1] if self.middle_first else self.rates

    @property
    def slower(self) -> list[float]:
        """Rates below those that come first, nearest first; of a single rate none."""
        left = self.rates[: self._middle][::-1] if self.middle_first else ()
        return [*left, *rounded(self.rates[0] / power for power in self._powers)]

    @property
    def faster(self) -> list[float]:
        """Rates above those that come first, nearest first, up to `fastest`; of a single rate none."""
        found = [self.rates[-1]]
        for power in self._powers:
            rate = min(self.rates[-1] * power, self.fastest)
            if rate > _LARGER * found[-1]:
                found.append(rate)
        left = self.rates[self._middle + 1 :] if self.middle_first else ()
        return [*left, *rounded(found[1:])]

    @property
    def _middle(self) -> int:
        return len(self.rates) // 2

    @property
    def _powers(self) -> list[float]:
        return [_STRIDE**i for i in range(1, _FURTHER + 1)] if len(self.rates) > 1 else []


def with_rates(sweeps: Sequence[Sweep]) -> tuple[list[BaselineRecipe], dict[int, tuple[int, ...]]]:
    """Each recipe with the rates that come first, and after all of these those with further rates; by the
    place of a member, those of the members with the next rates."""
    members = [sweep.member(rate) for sweep in sweeps for rate in sweep.first]
    beyond: dict[int, tuple[int, ...]] = {}
    first = 0
    for sweep in sweeps:
        last = first + len(sweep.first) - 1
        for end, rates in ((first, sweep.slower), (last, sweep.faster)):
            for rate in rates:
                beyond[end] = (*beyond.get(end, ()), len(members))
                end = len(members)
                members.append(sweep.member(rate))
        first = last + 1
    return members, beyond


def spread(rates: Sequence[float], count: int) -> list[float]:
    """`count` learning rates spread geometrically over the range of `rates`; one alone is the middle."""
    if count == 1:
        return [rates[len(rates) // 2]]
    low, high = rates[0], rates[-1]
    return rounded(low * (high / low) ** (i / (count - 1)) for i in range(count))


def rounded(rates: Iterable[float]) -> list[float]:
    """Rates as they are written in recipes: with three digits."""
    return [float(f"{rate:.3g}") for rate in rates]
