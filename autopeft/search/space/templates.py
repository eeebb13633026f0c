"""The parts of a compiled search space: slots that a value fills, and templates that values turn into data.

What is absent is pruned from the data: items of size zero, and sites that a backbone lacks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from autopeft.composition import is_composition
from autopeft.method import get_method, method_names
from autopeft.recipe import InputItem
from autopeft.recipe.parse import BESIDE
from autopeft.recipe.problems import MarkedDict, Path, copy_lines
from autopeft.search.space.parameters import ParameterKind
from autopeft.spec import SITE_NAMES, BackboneSpec

__all__ = [
    "ABSENT",
    "BlockTemplate",
    "Const",
    "Context",
    "Hidden",
    "ItemTemplate",
    "Last",
    "Listed",
    "Mapped",
    "Node",
    "Optional",
    "Ref",
    "Scaled",
    "Slot",
    "Templates",
    "fill",
    "has_start",
    "is_zero",
    "options_of",
    "prune",
    "size_field",
    "size_of",
    "slots_of",
    "walk",
]

_SIZES = ("rank", "bottleneck", "length", "keep")


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""The result of a template that is left out."""


@dataclass(frozen=True)
class Context:
    """The input of a template: `values` by parameter name, the `layer`, and the backbone's width and last
    layer."""

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


@dataclass(frozen=True)
class Hidden:
    """`hidden/16`: the backbone's width divided, rounded down, at least 1."""

    divisor: int


@dataclass(frozen=True)
class Last:
    """`last`: the index of the last layer."""


@dataclass(frozen=True)
class Ref:
    """The option of a slot's value, or the value itself."""

    slot: Slot


@dataclass(frozen=True)
class Scaled:
    """A number that is larger for smaller sizes: times (at/size)^power below the size `at`, at most `most`.

    For learning rates: a low-rank map of a smaller rank takes a larger one. The result is rounded to
    `DIGITS` digits, so that a plain rate such as 1e-3 can result at any size.
    """

    DIGITS: ClassVar[int] = 6

    number: Node
    size: Node
    at: float
    power: float
    most: float

    def of(self, number: float, size: float) -> float:
        """The number at a size."""
        scaled = min(number * self.factor(size), max(self.most, number))
        return float(f"{scaled:.{self.DIGITS}g}")

    def factor(self, size: float) -> float:
        """The factor for a size: 1 for a size of 0, which belongs to something absent."""
        try:
            return float(max(1.0, (self.at / size) ** self.power)) if size > 0 else 1.0
        except OverflowError:
            return sys.float_info.max


@dataclass(frozen=True)
class Optional:
    """A node that a true-or-false slot puts in or leaves out."""

    slot: Slot
    node: Node


@dataclass(frozen=True)
class Mapped:
    """A mapping of nodes; keys whose node is absent are left out. `source` gives the lines."""

    nodes: Mapping[str, Node]
    source: Any = None


@dataclass(frozen=True)
class Listed:
    """A list of nodes; absent ones are left out."""

    nodes: tuple[Node, ...]


Node = Const | Hidden | Last | Ref | Scaled | Optional | Mapped | Listed


def fill(node: Node, context: Context) -> Any:
    """The data that a template becomes, `ABSENT` for what a switch leaves out."""
    match node:
        case Const(value):
            return value
        case Hidden(divisor):
            return max(1, context.hidden // divisor)
        case Last():
            return context.last
        case Ref(slot):
            value = context.value(slot)
            return fill(slot.options[value], context) if slot.kind == "categorical" else value
        case Scaled(number, size):
            return node.of(fill(number, context), fill(size, context))
        case Optional(slot, inner):
            return fill(inner, context) if context.value(slot) else ABSENT
        case Mapped(nodes, source):
            filled = ((key, fill(inner, context)) for key, inner in nodes.items())
            return copy_lines(source, MarkedDict({k: v for k, v in filled if v is not ABSENT}))
        case Listed(elements):
            values = (fill(inner, context) for inner in elements)
            return [value for value in values if value is not ABSENT]


def walk(node: Node) -> Iterator[Node]:
    """A template and all templates in it, in the order of the file: the options of a choice too."""
    yield node
    below: Iterable[Node] = ()
    match node:
        case Ref(slot):
            below = slot.options.values()
        case Scaled(number, size):
            below = (number, size)
        case Optional(_, inner):
            below = (inner,)
        case Mapped(nodes):
            below = nodes.values()
        case Listed(elements):
            below = elements
    for inner in below:
        yield from walk(inner)


def slots_of(node: Node) -> list[Slot]:
    """The slots that decide on a template; one that is used twice is listed twice."""
    return [inner.slot for inner in walk(node) if isinstance(inner, (Ref, Optional))]


def has_start(node: Node) -> bool:
    """Whether some option of an item's template starts `from:` an input."""
    return any(isinstance(inner, Mapped) and "from" in inner.nodes for inner in walk(node))


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
        steps: training steps that the lower end is meant for: shorter trainings begin higher; `None` where
            it holds for any.
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
    """The most keys, elements and containers of a node's data."""
    if isinstance(node, Mapped):
        return 1 + len(node.nodes) + sum(map(size_of, node.nodes.values()))
    if isinstance(node, Listed):
        return 1 + sum(map(size_of, node.nodes))
    if isinstance(node, Optional):
        return size_of(node.node)
    return max(map(size_of, node.slot.options.values()), default=1) if isinstance(node, Ref) else 1


@dataclass(frozen=True, eq=False)
class ItemTemplate:
    """An item of the space and where it stands in the file."""

    node: Node
    path: Path
    level: str


@dataclass(frozen=True, eq=False)
class BlockTemplate:
    """A layer block: of the layers `of` those from `start` on, of these those that `switch` leaves on."""

    of: Node
    start: Node | None
    switch: Node | None
    stack: Node
    items: tuple[ItemTemplate, ...]
    each_layer: bool
    path: Path


@dataclass
class Templates:
    """A compiled space."""

    name: str = "space"
    reference: str | None = None
    inputs: dict[str, InputItem] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    blocks: list[BlockTemplate] = field(default_factory=list)
    model: list[ItemTemplate] = field(default_factory=list)
    training: Node = field(default_factory=lambda: Const({}))


def options_of(node: Node) -> list[Node]:
    """The options of a choice, or the node itself."""
    if isinstance(node, Ref) and node.slot.kind == "categorical":
        return list(node.slot.options.values())
    return [node]


def size_field(method: type[Any]) -> str | None:
    """The config key of a method's size: its `size_field`, else rank, bottleneck, length or keep."""
    named = getattr(method, "size_field", None)
    if isinstance(named, str):
        return named
    return next((key for key in _SIZES if key in method.Config.model_fields), None)


def is_zero(value: Any) -> bool:
    """Whether a size is zero: `0`, `0.0`, `"0"` or `"0%"`."""
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return re.fullmatch(r"\s*0+(\.0*)?\s*[%kKmM]?\s*", value) is not None
    return isinstance(value, (int, float)) and value == 0


def prune(tree: Any, spec: BackboneSpec | None, stacks: Sequence[str] | None) -> Any:
    """An item's data without what is absent, or `ABSENT`.

    Data that is no item is left as it is, for the reader of recipes to refuse.

    Args:
        spec: without it only sizes of zero count as absent.
        stacks: names of those that the item's block covers, `None` for an item of the model.
    """
    if tree is ABSENT:
        return ABSENT
    names = [key for key in tree if key not in BESIDE] if isinstance(tree, dict) else []
    if len(names) != 1:
        return tree
    name, body = names[0], tree[names[0]]
    if is_composition(name):
        children = body.get("children") if isinstance(body, dict) else body
        if not isinstance(children, list):
            return tree
        left = [child for c in children if (child := prune(c, spec, stacks)) is not ABSENT]
        if not left:
            return ABSENT
        inner = copy_lines(body, MarkedDict({**body, "children": left})) if isinstance(body, dict) else left
        return copy_lines(tree, MarkedDict({**tree, name: inner}))
    config = body or {}
    if not isinstance(config, dict) or name not in method_names():
        return tree
    size = size_field(get_method(name))
    if size is not None and is_zero(config.get(size)):
        return ABSENT
    sites = config.get("sites")
    if spec is None or not isinstance(sites, (list, tuple)):
        return tree
    have = spec.site_names(stacks)
    there = [site for site in sites if site in have or site not in SITE_NAMES]
    if not there and sites:
        return ABSENT
    inner = copy_lines(config, MarkedDict({**config, "sites": there}))
    return copy_lines(tree, MarkedDict({**tree, name: inner}))
