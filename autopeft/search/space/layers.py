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
        self.reach = tuple(sorted({i for s in stacks for at in sets for i in self._indices(at, s)}))

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
        left."""
        stack: str = self._fill(self._block.stack, values)
        at = self._at(values, stack) if self._stacks[stack] else None
        if at is None:
            return ()
        if layer is not None:
            if layer not in (at if isinstance(at, tuple) else self._indices(at, stack)):
                return ()
            at = (layer,)
        if isinstance(at, str) or self._even[stack]:
            return ((at, stack),)
        inside = [(tuple(i for i in at if i < self._depths[name]), name) for name in self._stacks[stack]]
        return tuple((chosen, name) for chosen, name in inside if chosen)

    def _at(self, values: Mapping[str, Any], stack: str) -> At | None:
        """The layers in canonical form; `None` where none is left."""
        block = self._block
        of = self._of or normalise_at(self._fill(block.of, values))
        if block.start is None and block.switch is None:
            return of
        start: Any = 0 if block.start is None else self._fill(block.start, values)
        first = self._last if start == "last" else min(int(start), self._last)
        chosen = tuple(i for i in self._indices(of, stack) if i >= first)
        if block.switch is not None:
            on = self._switched_on
            if on is None:
                chosen = tuple(i for i in chosen if block.switch.fill(self._context(values, i)))
            else:
                chosen = tuple([i for i in chosen if on[i][1][values[on[i][0]]]])
        if len(chosen) == max([self._depths[s] for s in self._stacks[stack]]):
            return "all"
        return chosen or None

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

    def _indices(self, at: At, stack: str) -> tuple[int, ...]:
        """Layers of any covered stack that `at` means."""
        found = self._sets.get((at, stack))
        if found is None:
            layers = {i for s in self._stacks[stack] for i in resolve_layers(at, self._depths[s])}
            found = self._sets.keep((at, stack), tuple(sorted(layers)))
        return found
