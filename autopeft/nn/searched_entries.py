"""Entries of the backbone that a search finds: a phase trains all of them, another the k best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from autopeft.method import Phase, WeightTarget
from autopeft.nn.chosen_entries import ChosenEntries, KeepConfig
from autopeft.nn.tensor_deltas import TensorDeltas
from autopeft.nn.top_entries import top_entries
from autopeft.spec import TensorSpec

__all__ = ["SearchConfig", "SearchedEntries"]

_NEVER = torch.finfo(torch.float32).min  # a score that nothing is chosen by


class SearchConfig(KeepConfig):
    """Options of a method that finds its entries by training more of them."""

    search: float = Field(default=0.5, gt=0, lt=1, description="share of the steps that search")


class SearchedEntries(ChosenEntries):
    """Values (k,) at k entries of the backbone, which the first phase of the training finds.

    In the phase `search` every tensor has a dense delta, which acts and trains in place of the values. It is
    allocated when the phase begins and freed when the phase `sparse` chooses: of an interrupted search the
    largest changes stay as they are. A module whose entries are chosen trains their values in one phase.

    Args:
        tensors: what it chooses among.
        k: how many entries.
        search: share of the steps that search.
        rewinds: whether `sparse` starts from the first values of all that the recipe trains.
    """

    dense: TensorDeltas | None

    def __init__(self, tensors: Sequence[TensorSpec], k: int, search: float, *, rewinds: bool) -> None:
        super().__init__(tensors, k)
        self.share, self.rewinds = search, rewinds
        self.dense = None

    # What methods differ in
    # -----------------------------------------------------------------------------------------------------

    def deltas(self) -> TensorDeltas:
        """The dense deltas, at their start."""
        return TensorDeltas(self.entries.tensors)

    def change(self, name: str) -> Tensor:
        """What the search has made of a tensor so far, of its shape."""
        assert self.dense is not None
        return self.dense[name]

    def applied(self, name: str, current: Tensor) -> Tensor:
        """`current` with a tensor's change added, in the forward of the search."""
        assert self.dense is not None
        return self.dense.apply_to(name, current)

    def scores(self, name: str) -> Tensor:
        """What entries of a tensor are ranked by; the largest are chosen."""
        return self.change(name).abs()

    def start(self, name: str) -> Tensor | None:
        """What the chosen entries of a tensor start from after the search; `None`: from where they were."""
        return None

    # Phases
    # -----------------------------------------------------------------------------------------------------

    def phases(self) -> list[Phase]:
        """`search` and `sparse`; one plain phase where the entries are chosen."""
        if not self.entries.missing:
            return [Phase("train")]
        return [
            Phase("search", self.share, begin=self.begin_search),
            Phase("sparse", 1 - self.share, anew=self.rewinds, begin=self.end_search),
        ]

    @torch.no_grad()
    def begin_search(self) -> None:
        """Give every tensor a dense delta; what is chosen already goes on in it from its values."""
        with torch.device(self.entries.values.device):
            self.dense = self.deltas()
        for tensor in self.entries.tensors:
            here, places = self.entries.within(tensor.name)
            whole = self.dense[tensor.name].view(-1)
            whole[places] = self.entries.values[here].to(whole.dtype)

    @torch.no_grad()
    def end_search(self, n: int | None = None) -> None:
        """Choose `n` more entries, by default all that are missing, and free what only the search needs."""
        self._choose(n, self.start)

    @torch.no_grad()
    def deploy(self) -> None:
        """Of an interrupted search the largest changes, as they are."""
        if self.dense is not None:
            self._choose(None, self.change)

    def finish(self) -> None:
        """A training that was asked to stop while it searched has found what it has found."""
        self.deploy()

    def _choose(self, n: int | None, start: Callable[[str], Tensor | None]) -> None:
        self.entries.extend(self.best(self.entries.missing if n is None else n))
        for name in self.entries.selected():
            values = start(name)
            if values is not None:
                here, places = self.entries.within(name)
                self.entries.values[here] = values.flatten()[places]
        self.dense = None

    def best(self, n: int) -> Tensor:
        """Positions (n,) of the best entries that are not chosen yet, of all tensors together."""
        return top_entries((self._open(t.name) for t in self.entries.tensors), n)

    def _open(self, name: str) -> Tensor:
        """Scores, of which those of chosen entries are out of question."""
        scores, places = self.scores(name), self.entries.within(name)[1]
        return scores.flatten().index_fill(0, places, _NEVER) if len(places) else scores

    def settled(self, step: int, total: int) -> bool:
        """Once all entries are chosen: a search goes on to its end."""
        return self.dense is None and not self.entries.missing

    # Acting and training
    # -----------------------------------------------------------------------------------------------------

    def weight_targets(self) -> Sequence[WeightTarget]:
        """The tensors with a chosen entry; all of them until the search has ended."""
        if self.dense is None:
            return super().weight_targets()
        return [WeightTarget(tensor=t.name) for t in self.entries.tensors]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        if self.dense is None:
            return super().weight(target, original, current)
        return self.applied(str(target.tensor), current)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The dense deltas while they are there, else the values."""
        own = [self.entries.values] if self.dense is None else list(self.dense.parameters())
        return [{"params": own}]
