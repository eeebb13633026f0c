"""`noah`: the supernet as it was published, over depths of deep prompts, LoRA and adapters.

Zhang, Zhou & Liu 2022, arXiv:2206.04673, with the numbers of the authors' code (ZhangYuanhan-AI/NOAH). What a
member has of a kind of module is in the first layers alone: in a quarter of them, in half, in three quarters
or in all, in each with a size of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from autopeft.errors import UsageError
from autopeft.search.space.elastic import SuperHybrid
from autopeft.search.strategies.registry import register
from autopeft.search.strategies.supernet import Evolution, Levels, Sizes, SupernetSearch

__all__ = ["DepthSizes", "NoahNumbers", "NoahSearch"]


class NoahNumbers(Evolution, frozen=True):
    """The authors' numbers; `methods/defaults.yaml` says where they stand.

    Attributes:
        depths: into how many parts the layers are divided.
        changes: how probable it is that a mutation looks at a kind of module.
        deeper: how probable it is that it then draws another depth for it, or the same.
        rate: the supernet's learning rate, in those of the members that are trained by themselves.
    """

    population: int = 50
    parents: int = 10
    mutants: int = 25
    crossed: int = 25
    tries: int = 10
    random_tries: int = 10_000
    depths: int = 4
    changes: float = 0.2
    deeper: float = 0.4
    rate: float = 0.5


_NUMBERS = NoahNumbers()


class DepthSizes(Sizes):
    """Members whose modules of each kind are in the first so many layers.

    Attributes:
        kinds: the units of each item of the space, by number, from the first layer on.
    """

    def __init__(self, hybrid: SuperHybrid, most: int) -> None:
        super().__init__(hybrid, most)
        found: dict[int, list[int]] = {}
        for number, unit in enumerate(hybrid.units):
            found.setdefault(id(unit.unit.template), []).append(number)
        self.kinds = [
            sorted(units, key=lambda i: hybrid.units[i].unit.layer or 0) for units in found.values()
        ]

    def depths(self, kind: Sequence[int]) -> tuple[int, ...]:
        """In how many layers modules of a kind may be: parts of all, rounded up."""
        parts = _NUMBERS.depths
        return tuple(-(-len(kind) * part // parts) for part in range(1, parts + 1))

    def drawn(self, draw: random.Random) -> Levels:
        """For each kind a depth, and in each of these layers a size."""
        levels = [0] * len(self.hybrid.units)
        for kind in self.kinds:
            for number in kind[: draw.choice(self.depths(kind))]:
                levels[number] = self._size(draw, number)
        return tuple(levels)

    def _size(self, draw: random.Random, number: int) -> int:
        return draw.randrange(1, len(self.hybrid.units[number].sizes))

    def within(self, draw: random.Random, levels: Levels) -> Levels | None:
        """The member as it is, where it is inside the budget."""
        return levels if self.hybrid.size(levels) <= self.most else None

    def mutated(self, draw: random.Random, levels: Levels) -> Levels:
        """With other depths, perhaps. Layers that a kind gets get a size; what is there keeps its own."""
        found = list(levels)
        for kind in self.kinds:
            if draw.random() >= _NUMBERS.changes or draw.random() >= _NUMBERS.deeper:
                continue
            depth = draw.choice(self.depths(kind))
            for place, number in enumerate(kind):
                if place >= depth:
                    found[number] = 0
                elif not found[number]:
                    found[number] = self._size(draw, number)
        return tuple(found)

    def crossed(self, draw: random.Random, one: Levels, other: Levels) -> Levels:
        """All modules of a kind from either."""
        found = list(one)
        for kind in self.kinds:
            parent = draw.choice((one, other))
            for number in kind:
                found[number] = parent[number]
        return tuple(found)


@register("noah")
class NoahSearch(SupernetSearch):
    """The published supernet, NOAH: depths of deep prompts, LoRA and adapters, with the authors' numbers.

    A generation has 50 members: mutants and members that are crossed from the ten best so far, and random
    ones. What is larger than the budget is not shrunk but drawn anew.
    """

    name: ClassVar[str] = "noah"
    space: ClassVar[str] = "noah"
    preset_trials: ClassVar[float] = 0.04
    numbers: ClassVar[type[Evolution]] = NoahNumbers
    sizes: ClassVar[type[Sizes]] = DepthSizes
    widest: ClassVar[int | None] = None
    rate: ClassVar[float] = _NUMBERS.rate

    @staticmethod
    def evolution(trials: int) -> Evolution:
        """The authors', however many members are chosen from."""
        return _NUMBERS

    def _check(self) -> None:
        super()._check()
        assert isinstance(self._sizes, DepthSizes)
        levels = [0] * len(self._hybrid.units)
        for kind in self._sizes.kinds:
            for number in kind[: self._sizes.depths(kind)[0]]:
                levels[number] = 1
        least = self._hybrid.size(levels)
        if least > self._most:
            raise UsageError(
                f"NOAH's smallest member has a module of each kind in a quarter of the layers, {least:,} "
                f"parameters together, and the budget is {self._most:,}. Give a larger budget, smaller sizes "
                "(`--space`), or take `--strategy supernet`."
            )
