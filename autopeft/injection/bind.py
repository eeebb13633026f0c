"""Trees of the composition graph bound to live modules at one site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autopeft.composition import Child, Value, nested
from autopeft.graph import CompositionGraph, Entry, Leaf, Tree
from autopeft.method import Call, Slot, WeightTarget
from autopeft.nn import PerSite
from autopeft.spec import Site

__all__ = [
    "BoundComposition",
    "BoundModule",
    "Members",
    "Role",
    "bind",
    "bound",
    "has_role",
    "in_own_dtype",
    "rows_of",
]

Role = Literal["input", "output", "kv", "scores", "weight", "prompt", "region"]


class Members(nn.Module):
    """An entry's module at one site, whose members are called with other values in its parameters' places.

    Args:
        site: `None` where it is called for a tensor by name, which no site of it belongs to.
    """

    def __init__(self, module: nn.Module, site: Site | None) -> None:
        super().__init__()
        self.module = module
        # What lies at other sites is not read at this one.
        elsewhere = [
            f"{name}.at.{key}".removeprefix(".")
            for name, part in module.named_modules()
            if site is not None and isinstance(part, PerSite)
            for key in part.at
            if key != site.key
        ]
        self.names = [
            name
            for name, _ in module.named_parameters()
            if not any(name.startswith(f"{other}.") or name == other for other in elsewhere)
        ]

    def forward(self, member: str, *args: Any) -> Any:
        return getattr(self.module, member)(*args)

    def call(self, value: Value, member: str, *args: Any) -> Any:
        """`module.member(*args)` with the values of `value`."""
        values = {f"module.{name}": value(name, self.module.get_parameter(name)) for name in self.names}
        return functional_call(self, values, (member, *args))


@dataclass(eq=False)
class BoundModule:
    """An entry's module at one site. Computes in the module's own dtype and hands back the site's.

    Attributes:
        target: where it stands for one of the tensors that the module alters by name, that tensor, whichever
            name others have for it.
        value: what its parameters become, where a composition wraps it.
        members: the module with its parameters replaced, once a composition has wrapped it.
    """

    name: str
    module: Any
    site: Site
    target: WeightTarget | None = None
    value: Value | None = None
    members: Members | None = None

    def under(self, value: Value) -> BoundModule:
        """See `autopeft.composition.Child`."""
        if self.members is None:
            # Of a tensor the site only stands for one: the child that alters it may belong to another.
            self.members = Members(self.module, self.site if self.target is None else None)
        return replace(self, value=nested(self.value, value))

    def _call(self, member: str, *args: Any) -> Any:
        if self.value is None:
            return getattr(self.module, member)(*args)
        assert self.members is not None
        return self.members.call(self.value, member, *args)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        if hasattr(self.module, "slots"):
            call = replace(call, owner=self.name)
        return in_own_dtype(self.module, lambda a, b: self._call("delta", self.site, a, b, call), x, y)

    def reads(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return self._call("reads", self.site, x, y, call) if hasattr(self.module, "reads") else x

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        weight: Tensor = self._call("weight", self.target or target, original, current)
        return weight

    def key_value(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        keys, values = self._call("key_value", self.site, x, call)
        return keys.to(x.dtype), values.to(x.dtype)

    def query_key(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Features (1 or batch, queries or keys, features) of the places in `call`."""
        queries, keys = self._call("query_key", self.site, x, call)
        return queries.to(x.dtype), keys.to(x.dtype)

    def around(self, x: Tensor, call: Call) -> Tensor:
        """The region's output as the module computes it; x is in the backbone's dtype."""
        y: Tensor = self._call("around", self.site, x, call)
        return y

    @property
    def slots(self) -> Sequence[Slot]:
        """The rows that it fills here."""
        slots: Sequence[Slot] = self.module.slots(self.site)
        return slots

    def prompt(self, x: Tensor, call: Call) -> Tensor:
        """(batch, rows of its slots, hidden) for the reserved positions; x is the text."""
        rows = in_own_dtype(self.module, lambda a, _: self._call("prompt", self.site, a, call), x, x)
        return rows.to(x.dtype).expand(x.shape[0], -1, -1)


def rows_of(prompts: Iterable[BoundModule], x: Tensor, call: Call) -> list[Tensor]:
    """The rows of all prompts that have some at the moment, (batch, rows, hidden) each."""
    return [prompt.prompt(x, call) for prompt in prompts if prompt.slots]


@dataclass(eq=False)
class BoundComposition:
    """A composition at one site over its bound children."""

    name: str
    module: Any
    site: Site
    children: Sequence[Child]

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        delta: Tensor = self.module.delta(self.site, self.children, x, y, call)
        return delta

    def reads(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return x

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        weight: Tensor = self.module.weight(target, self.children, original, current)
        return weight

    def key_value(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = self.module.key_value(self.site, self.children, x, call)
        return pair

    def under(self, value: Value) -> BoundComposition:
        """Its children with other values; its own parameters stay."""
        return replace(self, children=tuple(child.under(value) for child in self.children))


def in_own_dtype(
    module: nn.Module, delta: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """`delta(x, y)` in the module's own dtype, converted to that of y."""
    first = next(module.parameters(), None)
    dtype = None if first is None else first.dtype
    if dtype is None or dtype == y.dtype or torch.is_autocast_enabled(y.device.type):
        return delta(x, y)
    return delta(x.to(dtype), y.to(dtype)).to(y.dtype)


def has_role(entry: Entry, module: Any, site: Site, role: Role) -> bool:
    """Whether an entry's module acts at a site in this role."""
    if all(s.key != site.key for s in entry.sites):
        return False
    if role in ("input", "output"):
        return "hook" in entry.ways and module.side(site) == role
    if role not in entry.ways:
        return False
    if role == "weight":
        return any(t.site is not None and t.site.key == site.key for t in module.weight_targets())
    if role == "prompt":
        return bool(module.slots(site))
    if role == "region":  # of one that hooks other sites those where it has no side
        return "hook" not in entry.ways or module.side(site) is None
    return site.name == "attention" or (role == "kv" and site.name == "cross_attention")


def bind(
    graph: CompositionGraph, modules: Mapping[str, nn.Module], site: Site, role: Role
) -> list[BoundModule | BoundComposition]:
    """The bound trees that act at `site` in a role, in file order, cut down to the children that do."""
    acting = (name for name, entry in graph.entries.items() if has_role(entry, modules[name], site, role))
    leaves = {name: BoundModule(name, modules[name], site) for name in acting}
    found = (bound(tree, leaves, modules, site) for tree in graph.trees_at(site))
    return [tree for tree in found if tree is not None]


def bound(
    tree: Tree, leaves: Mapping[str, BoundModule], modules: Mapping[str, Any], site: Site
) -> BoundModule | BoundComposition | None:
    """A tree over those of its leaves that are bound; `None` where none is."""
    if isinstance(tree, Leaf):
        return leaves.get(tree.name)
    children = tuple(c for child in tree.children if (c := bound(child, leaves, modules, site)) is not None)
    return BoundComposition(tree.name, modules[tree.name], site, children) if children else None
