"""Maps at some sites and values at entries of tensors, as a budget is spent on a ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autopeft.method import Call, Explicit, Placement, WeightTarget
from autopeft.nn.allocation import Whole, allocate
from autopeft.nn.per_site import PerSite
from autopeft.nn.settled_maps import SettledAdapter, SettledPair
from autopeft.nn.sparse_delta import SparseDelta
from autopeft.spec import Site, TensorSpec

__all__ = ["SettledStructure"]


class SettledStructure(PerSite[SettledPair | SettledAdapter]):
    """A pair or an adapter at some sites, and values at entries of other tensors.

    Until the budget is spent the values are as many as it has parameters, and none has an entry.

    Args:
        children: what may stand at the sites of matrices, in the place of their entries.
        tensors: the ranked ones, each with what stands for its entries: the child at its site, those at its
            parts' where it has none as a whole, or all entries where there is no child.
        fixed: tensors that are trained whole in any case.
        budget: parameters at most, those of `fixed` included.

    Attributes:
        entries: values at single entries, and at all entries of what is trained whole.
    """

    def __init__(
        self,
        children: dict[str, SettledPair | SettledAdapter],
        tensors: Mapping[TensorSpec, Whole],
        fixed: Sequence[TensorSpec],
        budget: int,
    ) -> None:
        super().__init__(children)
        self.tensors, self.fixed, self.budget = dict(tensors), tuple(fixed), budget
        self.entries = SparseDelta([*self.tensors, *self.fixed], budget)

    # Acting
    # --------------------------------------------------------------------------------------------------

    def side(self, site: Site) -> Literal["input", "output"] | None:
        """The output where a child stands now."""
        return "output" if site.key in self.at and self[site].there else None

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return self[site].added(x, y)

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        pair = self[site]
        assert isinstance(pair, SettledPair)
        return weight + pair.product(), bias

    def weight_targets(self) -> Sequence[WeightTarget]:
        """The tensors with a chosen entry; all of them while values wait for theirs."""
        waiting = self.entries.offsets if len(self.entries.values) else ()
        return [WeightTarget(tensor=name) for name in self.entries.selected() or waiting]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.entries.apply_to(str(target.tensor), current)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The projections down and up of all sites, and the values at entries."""
        down, up = list[nn.Parameter](), list[nn.Parameter]()
        for name, parameter in self.at.named_parameters():
            (up if name.endswith(".B") or ".up." in name else down).append(parameter)
        return {"down": down, "up": up, "entries": [self.entries.values]}

    # Settling
    # --------------------------------------------------------------------------------------------------

    def spend(self, positions: Tensor, numbers: Tensor) -> None:
        """Spend the budget on a ranking (see `leading_entries`); everything starts anew."""
        spare = self.budget - sum(t.size for t in self.fixed)
        found = allocate(positions, numbers, list(self.tensors.values()), spare)
        offsets, chosen = self.entries.offsets, [found.entries]
        for tensor, whole in zip(self.tensors, found.whole, strict=True):
            keys = [f"{tensor.stack}-{tensor.layer}-{name}" for name in tensor.maps]
            keys = [key for key in keys if tensor.role == "weight" and key in self.at]
            for key in keys:
                self._put(key, there=whole)
            if whole and not keys:
                chosen.append(torch.arange(*offsets[tensor.name]))
        chosen += [torch.arange(*offsets[tensor.name]) for tensor in self.fixed]
        index = torch.cat([c.to(self.entries.index.device) for c in chosen])
        self._hold(len(index))
        self.entries.select(index)

    def _put(self, key: str, *, there: bool) -> None:
        child: Any = self.at[key]
        if there:
            child.put_in()
        else:
            child.leave_out()

    def _hold(self, size: int) -> None:
        self.entries = SparseDelta(self.entries.tensors, size).to(self.entries.values.device)

    def deploy(self) -> None:
        """All that is there acts."""

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        size, children = shapes["entries.values"][0], dict(zip(self.at, self.children_by_site(), strict=True))
        there = dict[str, bool]()
        for key, child in children.items():
            factor = "A" if isinstance(child, SettledPair) else "inner.down.weight"
            there[key] = shapes[f"at.{key}.{factor}"][0] > 0
        if size + sum(child.cost for key, child in children.items() if there[key]) > self.budget:
            return
        self._hold(size)
        for key, is_there in there.items():
            self._put(key, there=is_there)

    def explicit(self, sites: Sequence[Site]) -> Explicit:
        """LoRAs for pairs and BitFit for whole biases; single entries and whole gains of norms have no word,
        nor has dropping whole rows."""
        placed = list[Placement]()
        for site in sites:
            pair = self[site] if site.key in self.at else None
            if isinstance(pair, SettledPair) and pair.there and site.layer is not None:
                options: dict[str, Any] = {"rank": pair.largest, "alpha": pair.largest}
                options |= {"dropout": pair.dropout} if pair.dropout else {}
                placed.append(Placement("lora", site.stack, site.layer, site.name, options))
        drops = bool(placed) and any(child.path_dropout for child in self.children_by_site())
        single = gains = 0
        for t in self.entries.tensors:
            lo, hi = self.entries.spans()[t.name]
            if hi - lo < t.size:
                single += hi - lo
            elif t.role in ("bias", "norm_bias") and t.stack and t.site and t.layer is not None:
                placed.append(Placement("bitfit", t.stack, t.layer, t.site, listed="terms"))
            else:
                gains += hi - lo
        words = (
            (single, f"{single:,} single entries"),
            (gains, f"{gains:,} entries of whole tensors that are no biases of layers"),
            (drops, "that modules drop whole rows while they train"),
        )
        return Explicit(tuple(placed), tuple(word for is_there, word in words if is_there))
