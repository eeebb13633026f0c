"""Where the blocks of a search space lie, for values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from operator import itemgetter
from typing import Any

from autopeft.graph import Memo
from autopeft.recipe import resolve_layers
from autopeft.recipe.layers import At, normalise_at
from autopeft.search.space.compiler import BlockTemplate, options_of
from autopeft.search.space.expressions import Const, Context, Node, Ref
from autopeft.spec import BackboneSpec

__all__ = ["BlockPlaces", "Where", "key_of", "row_of"]

_LAYER_SETS = 1024
_STACKS = ("all", "encoder", "decoder")

Where = tuple[tuple[At, str], ...]
"""`at` and `stack` of the recipe's blocks that a block of the space becomes."""


def key_of(names: Iterable[str]) -> Callable[[Mapping[str, Any]], Any]:
    """A function that reads the values of these names as something that can be looked up."""
    names = tuple(names)
    return itemgetter(*names) if names else lambda values: ()


def row_of(names: Iterable[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function that reads the values of these names as a tuple."""
    names = tuple(names)
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple(values[name] for name in names)


class BlockPlaces:
    """The layers and stacks of one block of a space.

    Attributes:
        reach: the layers that the block may come to lie in, whatever the values.
        parameters: what decides where it lies.
    """

    def __init__(
        self,
        block: BlockTemplate,
        spec: BackboneSpec,
        context: Callable[[Mapping[str, Any], int | None], Context],
    ) -> None:
        self._block, self._context = block, context
        self._depths: dict[str, int] = {stack.name: stack.layers for stack in spec.stacks}
        self._last = max(self._depths.values()) - 1
        self._sets: Memo[tuple[At, str], tuple[int, ...]] = Memo(_LAYER_SETS)
        self._stacks = {s: tuple(n for n in self._depths if s in ("all", n)) for s in _STACKS}
        self._even = {s: len({self._depths[n] for n in names}) == 1 for s, names in self._stacks.items()}
        bare = context({}, None)
        self._of = normalise_at(block.of.value) if isinstance(block.of, Const) else None
        stacks = [option.fill(bare) for option in options_of(block.stack)]
        sets = [normalise_at(option.fill(bare)) for option in options_of(block.of)]
        covered = {name for s in stacks for name in self._stacks[s]}
        self.reach = tuple(sorted({i for name in covered for at in sets for i in self._indices(at, name)}))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return self.parameters_in(None)

    def parameters_in(self, layer: int | None) -> tuple[str, ...]:
        """What decides whether the block lies in a layer; for `None` where it lies."""
        block = self._block
        shared = [node for node in (block.of, block.stack, block.start) if node is not None]
        names = [slot.parameter(None) for node in shared for slot in node.slots()]
        if block.switch is not None:
            layers = self.reach if layer is None else (layer,)
            names += [slot.parameter(i) for i in layers for slot in block.switch.slots()]
        return tuple(dict.fromkeys(names))

    def stacks(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The stacks of this backbone that the block covers."""
        return self._stacks[self._fill(self._block.stack, values)]

    def where(self, values: Mapping[str, Any], layer: int | None = None) -> Where:
        """The recipe's blocks that this one becomes, whole or cut down to a layer; none where no layer is
        left. Stacks of unequal depth have a block each where each has layers of its own."""
        stack: str = self._fill(self._block.stack, values)
        names, block = self._stacks[stack], self._block
        if not names:
            return ()
        of = self._of or normalise_at(self._fill(block.of, values))
        if block.start is None and block.switch is None and layer is None:
            return ((of, stack),)
        first = self._first(values)
        on = self._on(values)
        if self._even[stack]:
            at = self._chosen(of, names[0], first, on, layer)
            return () if at is None else ((at, stack),)
        inside = [(self._chosen(of, name, first, on, layer), name) for name in names]
        if all(at == "all" for at, _ in inside):
            return (("all", stack),)
        return tuple((at, name) for at, name in inside if at is not None)

    def _chosen(
        self, of: At, name: str, first: int, on: Callable[[int], bool], layer: int | None
    ) -> At | None:
        """A stack's layers in canonical form; `None` where none is left."""
        inside = [i for i in self._indices(of, name) if i >= first and (layer is None or i == layer)]
        chosen = tuple([i for i in inside if on(i)])
        whole = layer is None and len(chosen) == self._depths[name]
        return "all" if whole else chosen or None

    def _first(self, values: Mapping[str, Any]) -> int:
        start: Any = 0 if self._block.start is None else self._fill(self._block.start, values)
        return self._last if start == "last" else min(int(start), self._last)

    def _on(self, values: Mapping[str, Any]) -> Callable[[int], bool]:
        """Whether a layer is switched on."""
        switch = self._block.switch
        if switch is None:
            return lambda i: True
        on = self._switched_on
        if on is None:
            return lambda i: bool(switch.fill(self._context(values, i)))
        return lambda i: on[i][1][values[on[i][0]]]

    @cached_property
    def _switched_on(self) -> dict[int, tuple[str, dict[Any, bool]]] | None:
        """For each layer the parameter that switches it, and what its values mean; `None` for a switch that
        is more than one choice."""
        switch = self._block.switch
        if not isinstance(switch, Ref) or len(list(switch.slots())) != 1 or switch.slot.kind != "categorical":
            return None
        bare = self._context({}, None)
        means = {value: bool(option.fill(bare)) for value, option in switch.slot.options.items()}
        return {i: (switch.slot.parameter(i), means) for i in self.reach}

    def _fill(self, node: Node, values: Mapping[str, Any]) -> Any:
        return node.value if isinstance(node, Const) else node.fill(self._context(values, None))

    def _indices(self, at: At, name: str) -> tuple[int, ...]:
        """Layers of a stack that `at` means."""
        found = self._sets.get((at, name))
        if found is None:
            found = self._sets.keep((at, name), resolve_layers(at, self._depths[name]))
        return found
