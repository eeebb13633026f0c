"""Budgets, and the one function that counts.

`deployed` is what inference needs and training set: the budget's figure. `trained` adds what is thrown away
after training (reparameterisation MLPs). The head is trained always and counted apart. A share is of the
base model's unique parameters, embeddings and pooler included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from autopeft.display import box, number, percent, table
from autopeft.errors import BudgetError, UsageError
from autopeft.graph import CompositionGraph, build_graph, clash, hash_of, parts_of, read_by, total_of
from autopeft.quantity import Quantity, parse_quantity
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import tasks_of, with_further_task
from autopeft.spec import BackboneSpec

__all__ = ["Budget", "Counter", "Counts", "Measure", "count", "further_task"]


@dataclass(frozen=True)
class Counts:
    """The four figures of a hybrid.

    Attributes:
        deployed: parameters that inference needs and training set, head left out.
        trained: parameters that the optimizer holds, head left out.
        head: parameters of the task head (0 where no head is known).
        backbone: unique parameters of the base model.
    """

    deployed: int
    trained: int
    head: int
    backbone: int

    @property
    def share(self) -> float:
        """Deployed over backbone."""
        return self.deployed / self.backbone

    @property
    def share_with_modules(self) -> float:
        """Deployed over backbone and modules together."""
        return self.deployed / (self.backbone + self.deployed)

    def to_dict(self) -> dict[str, int | float]:
        return {
            "deployed": self.deployed,
            "trained": self.trained,
            "head": self.head,
            "backbone": self.backbone,
            "share": self.share,
            "share_with_modules": self.share_with_modules,
        }

    def __repr__(self) -> str:
        deployed = f"{self.deployed:,} deployed ({percent(self.share)} of {self.backbone:,})"
        return f"Counts({deployed}, {self.trained:,} trained, {self.head:,} head)"

    def rows(self) -> list[tuple[str, str, str]]:
        """The figures as text: name, parameters, and the share of the backbone where it is one."""
        return [
            ("deployed", number(self.deployed), percent(self.share)),
            ("trained", number(self.trained), ""),
            ("head", number(self.head), ""),
            ("backbone", number(self.backbone), ""),
        ]

    def _repr_html_(self) -> str:
        """A small box for notebooks."""
        return box("Counts", table(("", "parameters", "share"), self.rows(), right=(1, 2)))


class Measure(NamedTuple):
    """A recipe's measure in a search: `deployed` and `trained` parameters, and the `hash` of its structure
    (see `CompositionGraph.hash`)."""

    deployed: int
    trained: int
    hash: str


@dataclass(frozen=True)
class Counter:
    """Counts and hashes recipes on one backbone, without a graph for each.

    What an entry is at its layers is remembered, in bounded memory, so that recipes that share entries cost
    little. Results and errors are those of `build_graph`. Counters of one spec share what they remember.
    """

    spec: BackboneSpec

    def measure(self, recipe: Recipe) -> Measure:
        """Count and hash a recipe.

        Raises:
            UsageError: the recipe does not fit the backbone.
        """
        try:
            parts = parts_of(read_by(recipe, self.spec)).of(recipe)
            measure = Measure(*total_of(parts), hash_of(parts))
            works = not clash(parts)
        except (UsageError, ValueError):
            works = False
        if works:
            return measure
        # A recipe that cannot work is built, so that errors name its entries.
        graph = build_graph(recipe, self.spec)
        total = graph.parameter_count()
        return Measure(total.deployed, total.trained, graph.hash())

    def count(self, recipe: Recipe, *, head: int = 0) -> Counts:
        """See `count`."""
        return count(recipe, self.spec, head=head)

    def hash(self, recipe: Recipe) -> str:
        """The hash of the recipe's structure on this backbone.

        Raises:
            UsageError: the recipe does not fit the backbone.
        """
        return self.measure(recipe).hash


def count(what: Recipe | CompositionGraph, spec: BackboneSpec, *, head: int = 0) -> Counts:
    """Count a recipe (or its graph) on a backbone in closed form.

    Raises:
        UsageError: the recipe does not fit the backbone.
    """
    if isinstance(what, Recipe):
        try:
            parts = parts_of(read_by(what, spec)).of(what)
            deployed, trained = total_of(parts)
            works = not clash(parts)
        except (UsageError, ValueError):
            works = False
        if works:
            return Counts(deployed, trained, head, spec.parameters)
        what = build_graph(what, spec)
    total = what.parameter_count()
    return Counts(total.deployed, total.trained, head, spec.parameters)


def further_task(recipe: Recipe, spec: BackboneSpec) -> int:
    """Deployed parameters that one more task adds to a recipe of several tasks, head left out: 0 where
    nothing in it acts by the task of a row.

    Raises:
        UsageError: the recipe does not fit the backbone.
    """
    if not tasks_of(recipe):
        return 0
    return count(with_further_task(recipe), spec).deployed - count(recipe, spec).deployed


@dataclass(frozen=True)
class Budget:
    """A limit on deployed parameters: an upper one, and with a range a lower one too.

    Shares are of the backbone's parameters and rounded down: MiniLM (22,713,216) at 0.5 % is 113,566.
    """

    upper: Quantity
    lower: Quantity | None = None

    @classmethod
    def parse(cls, text: str | int) -> Budget:
        """Read `0.5%`, `300k`, `1.2M`, `0.1%..1%` or `100k..300k`.

        Raises:
            BudgetError: `text` is none of these, or the range is empty.
        """
        try:
            if not isinstance(text, str):
                return cls(parse_quantity(text))
            low, dots, high = text.partition("..")
            if not dots:
                return cls(parse_quantity(low))
            lower, upper = parse_quantity(low), parse_quantity(high)
        except UsageError as error:
            shown = f" {text!r}" if isinstance(text, str) else ""
            raise BudgetError(f"Budget{shown}: {error} A range is written '0.1%..1%'.") from error
        if lower.share == upper.share and lower.value > upper.value:
            raise BudgetError(f"Budget {text!r} runs backwards; write '{upper}..{lower}'.")
        return cls(upper, lower)

    def limits(self, spec: BackboneSpec) -> tuple[int, int]:
        """(least, most) deployed parameters on this backbone.

        Raises:
            BudgetError: the range is empty here, or not even one parameter fits.
        """
        most = self.upper.of(spec.parameters)
        least = 0 if self.lower is None else self.lower.of(spec.parameters)
        if most < 1:
            raise BudgetError(f"A budget of {self} of {spec.parameters:,} parameters leaves none; raise it.")
        if least > most:
            raise BudgetError(
                f"A budget of {self} is empty on this backbone: {least:,} to {most:,} parameters."
            )
        return least, most

    def admits(self, deployed: int, spec: BackboneSpec) -> bool:
        """Whether a deployed count lies within the limits."""
        least, most = self.limits(spec)
        return least <= deployed <= most

    def __str__(self) -> str:
        return str(self.upper) if self.lower is None else f"{self.lower}..{self.upper}"
