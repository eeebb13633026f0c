"""The parts of a search space: slots that a value fills, and templates that values turn into data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from autopeft.recipe.problems import MarkedDict, copy_lines

__all__ = [
    "ABSENT",
    "Const",
    "Context",
    "Hidden",
    "Last",
    "Listed",
    "Mapped",
    "Node",
    "Optional",
    "Ref",
    "Scaled",
    "Slot",
    "size_of",
]

ParameterKind = Literal["categorical", "int", "float"]


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""What a template yields where it is left out."""


@dataclass(frozen=True)
class Context:
    """What a template is filled from: `values` by parameter name, the `layer`, the backbone's figures."""

    values: Mapping[str, Any]
    hidden: int
    last: int
    layer: int | None = None

    def value(self, slot: Slot) -> Any:
        return self.values[slot.parameter(self.layer)]


@dataclass(frozen=True)
class Const:
    """A value as it stands."""

    value: Any

    def fill(self, context: Context) -> Any:
        return self.value

    def slots(self) -> Iterator[Slot]:
        return iter(())


@dataclass(frozen=True)
class Hidden:
    """`hidden/16`: the backbone's width divided, rounded down, at least 1."""

    divisor: int

    def fill(self, context: Context) -> Any:
        return max(1, context.hidden // self.divisor)

    def slots(self) -> Iterator[Slot]:
        return iter(())


@dataclass(frozen=True)
class Last:
    """`last`: the index of the last layer."""

    def fill(self, context: Context) -> Any:
        return context.last

    def slots(self) -> Iterator[Slot]:
        return iter(())


@dataclass(frozen=True)
class Ref:
    """What a slot's value stands for."""

    slot: Slot

    def fill(self, context: Context) -> Any:
        value = context.value(self.slot)
        return self.slot.options[value].fill(context) if self.slot.kind == "categorical" else value

    def slots(self) -> Iterator[Slot]:
        yield self.slot
        for option in self.slot.options.values():
            yield from option.slots()


@dataclass(frozen=True)
class Scaled:
    """A number that is larger for smaller sizes: times (at/size)^power below the size `at`, at most `most`.

    For learning rates: a low-rank map whose rank is smaller takes a larger one. What comes out has
    `DIGITS` digits, so that a plain rate such as 1e-3 can come out at any size.
    """

    DIGITS: ClassVar[int] = 6

    number: Node
    size: Node
    at: float
    power: float
    most: float

    def fill(self, context: Context) -> Any:
        return self.of(self.number.fill(context), self.size.fill(context))

    def of(self, number: float, size: float) -> float:
        """The number at a size."""
        scaled = min(number * self.factor(size), max(self.most, number))
        return float(f"{scaled:.{self.DIGITS}g}")

    def factor(self, size: float) -> float:
        """What a size multiplies with; a size of 0 is that of something absent."""
        try:
            return float(max(1.0, (self.at / size) ** self.power)) if size > 0 else 1.0
        except OverflowError:
            return sys.float_info.max

    def slots(self) -> Iterator[Slot]:
        yield from self.number.slots()
        yield from self.size.slots()


@dataclass(frozen=True)
class Optional:
    """A node that a true-or-false slot puts in or leaves out."""

    slot: Slot
    node: Node

    def fill(self, context: Context) -> Any:
        return self.node.fill(context) if context.value(self.slot) else ABSENT

    def slots(self) -> Iterator[Slot]:
        yield self.slot
        yield from self.node.slots()


@dataclass(frozen=True)
class Mapped:
    """A mapping of nodes; keys whose node is absent are left out. `source` gives the lines."""

    nodes: Mapping[str, Node]
    source: Any = None

    def fill(self, context: Context) -> Any:
        filled = ((key, node.fill(context)) for key, node in self.nodes.items())
        return copy_lines(self.source, MarkedDict({k: v for k, v in filled if v is not ABSENT}))

    def slots(self) -> Iterator[Slot]:
        for node in self.nodes.values():
            yield from node.slots()


@dataclass(frozen=True)
class Listed:
    """A list of nodes; absent ones are left out."""

    nodes: tuple[Node, ...]

    def fill(self, context: Context) -> Any:
        filled = (node.fill(context) for node in self.nodes)
        return [value for value in filled if value is not ABSENT]

    def slots(self) -> Iterator[Slot]:
        for node in self.nodes:
            yield from node.slots()


Node = Const | Hidden | Last | Ref | Scaled | Optional | Mapped | Listed


@dataclass(eq=False)
class Slot:
    """A choice of the space, before it is known how many layers share or repeat it.

    Attributes:
        name: readable and unique in the space.
        kind: `categorical`, `int` or `float`.
        per_layer: drawn anew for each layer.
        options: for a categorical slot what each value stands for, in file order.
        low, high: bounds of a number, as nodes (`hidden/8`, `last`).
        log: drawn on a logarithmic scale.
        steps: of the trainings that the lower end is meant for, where shorter ones want more; `None` where it
            holds for any.
        numeric: whether all options are numbers or shares of the width.
    """

    name: str
    kind: ParameterKind
    per_layer: bool
    options: dict[Any, Node] = field(default_factory=dict)
    low: Node = Const(0)
    high: Node = Const(0)
    log: bool = False
    steps: int | None = None
    numeric: bool = False

    def parameter(self, layer: int | None) -> str:
        """The name of the parameter that fills the slot in `layer`."""
        return f"layer_{layer}.{self.name}" if self.per_layer else self.name


def size_of(node: Node) -> int:
    """How many keys, elements and containers a node becomes at most."""
    if isinstance(node, Mapped):
        return 1 + len(node.nodes) + sum(map(size_of, node.nodes.values()))
    if isinstance(node, Listed):
        return 1 + sum(map(size_of, node.nodes))
    if isinstance(node, Optional):
        return size_of(node.node)
    return max(map(size_of, node.slot.options.values()), default=1) if isinstance(node, Ref) else 1
