"""The layers of a backbone as the bits of an integer, and the sites that lie in them.

A set of layers is a *mask*: one bit for each layer of each stack. Bits follow the order of the sites' keys
as text (`encoder-1-…` before `encoder-10-…` before `encoder-2-…`), so that the sorted keys of any mask are
its layers' sorted keys put one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from autopeft.errors import RecipeError
from autopeft.graph.memo import Memo
from autopeft.recipe.layers import At, resolve_layers
from autopeft.spec import BackboneSpec, Site

__all__ = ["WHOLE", "LayerMasks", "Spread", "key_text"]

WHOLE = -1
"""The mask of an item of the model: every layer, and what lies in none."""

_MASKS = 1024
_SPREADS = 256


def key_text(sites: Iterable[Site]) -> str:
    """The sites' keys, sorted, as the inside of a JSON list."""
    return ",".join(json.dumps(key) for key in sorted(s.key for s in sites))


@dataclass
class Spread:
    """The sites of certain names, by layer. The last mask asked for is remembered.

    Attributes:
        everywhere: all of them, in the spec's order.
        layers: each layer's bit and sites, in the spec's order.
        texts: each layer's bit and its sites' sorted keys as the inside of a JSON list, in the order of bits.
        last, written: the last mask, with its sites and with their keys.
    """

    everywhere: tuple[Site, ...]
    layers: list[tuple[int, tuple[Site, ...]]]
    texts: list[tuple[int, str]]
    last: tuple[int, tuple[Site, ...]]
    written: tuple[int, str]

    def sites(self, mask: int) -> tuple[Site, ...]:
        """The sites in the layers of `mask`, in the spec's order."""
        last = self.last
        if mask != last[0]:
            inside = [s for bit, sites in self.layers if mask & bit for s in sites]
            last = self.last = (mask, self.everywhere if mask == WHOLE else tuple(inside))
        return last[1]

    def text(self, mask: int) -> str:
        """The sorted keys of `sites(mask)`, as the inside of a JSON list."""
        last = self.written
        if mask != last[0]:
            inside = [text for bit, text in self.texts if mask & bit]
            last = self.written = (mask, key_text(self.everywhere) if mask == WHOLE else ",".join(inside))
        return last[1]


class LayerMasks:
    """Masks and sites of one backbone."""

    def __init__(self, spec: BackboneSpec) -> None:
        self.spec = spec
        layers = [(stack.name, i) for stack in spec.stacks for i in range(stack.layers)]
        by_key = sorted(layers, key=lambda layer: f"{layer[0]}-{layer[1]}-")
        self.bits = {layer: 1 << n for n, layer in enumerate(by_key)}
        self._inside: dict[int, list[Site]] = {}
        for site in spec.sites:
            if site.layer is not None and (site.stack, site.layer) in self.bits:
                self._inside.setdefault(self.bits[site.stack, site.layer], []).append(site)
        # By stack: the mask of each layer, of `all` that of each layer that all stacks have.
        self._tables: dict[str, list[int]] = {
            stack.name: [self.bits[stack.name, i] for i in range(stack.layers)] for stack in spec.stacks
        }
        self._tables["all"] = [sum(bits) for bits in zip(*self._tables.values(), strict=False)]
        self._masks: Memo[tuple[str, str], int] = Memo(_MASKS)
        self._spreads: Memo[frozenset[str], Spread] = Memo(_SPREADS)

    def mask(self, at: At, stack: str) -> int:
        """The layers that a block with this `at` and `stack` covers.

        Raises:
            SiteError: there is no such stack.
            RecipeError: there is no such layer.
        """
        table = self._tables[stack if stack in self._tables else self.spec.stack(stack).name]
        if isinstance(at, tuple):
            if at[-1] < len(table):
                return sum([table[i] for i in at])
        else:
            found = self._masks.get((at, stack))
            if found is not None:
                return found
        mask = 0
        for own in self.spec.stacks:
            if stack not in ("all", own.name):
                continue
            try:
                layers = resolve_layers(at, own.layers)
            except RecipeError as error:
                if own.runs == 1:
                    raise
                raise RecipeError(
                    f"{error} Each layer with weights of its own runs {own.runs} times here, and what is "
                    "attached to it acts in every run; write at: all."
                ) from error
            mask += sum(self.bits[own.name, i] for i in layers)
        return mask if isinstance(at, tuple) else self._masks.keep((at, stack), mask)

    def spread(self, names: frozenset[str]) -> Spread:
        """The sites of these names."""
        found = self._spreads.get(names)
        if found is None:
            layers = [
                (bit, there)
                for bit, sites in self._inside.items()
                if (there := tuple(s for s in sites if s.name in names))
            ]
            everywhere = tuple(s for s in self.spec.sites if s.name in names)
            texts = sorted((bit, key_text(sites)) for bit, sites in layers)
            written = (WHOLE, key_text(everywhere))
            found = Spread(everywhere, layers, texts, (WHOLE, everywhere), written)
            self._spreads.keep(names, found)
        return found
