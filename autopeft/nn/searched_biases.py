"""Biases that a search finds: all of them train, and first-order scores tell which updates matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from autopeft.errors import MethodError
from autopeft.method import Interim, Phase, Session
from autopeft.nn.searched_entries import SearchConfig, SearchedEntries
from autopeft.quantity import parse_quantity
from autopeft.spec import BackboneSpec, TensorSpec

__all__ = ["BiasSearchConfig", "SearchedBiases"]


class BiasSearchConfig(SearchConfig):
    """Options of a method that searches among biases."""

    keep: int | str = Field(default="10%", description="a share of all biases, such as '10%', or a count")
    score: Literal["signed", "abs"] = Field(
        default="signed", description="rank by the summed scores themselves, or by their absolute values"
    )
    scored: float = Field(default=0.5, gt=0, le=1, description="share of the search's steps that score")
    rewind: bool = Field(default=True, description="train the chosen biases, and all else, from the start")

    def biases(self, name: str, spec: BackboneSpec) -> list[TensorSpec]:
        """Every bias of a backbone, of linear maps and norms.

        Raises:
            MethodError: it has none.
        """
        found = [t for t in spec.tensors if t.role in ("bias", "norm_bias")]
        if not found:
            raise MethodError(
                f"{name} trains biases, and {spec.family!r} has none; use ia3 (about as small) or lora."
            )
        return found

    def budget(self, name: str, spec: BackboneSpec) -> int:
        """k: a share is one of all biases.

        Raises:
            MethodError: the backbone has no biases, or that is none of them, or more than there are.
        """
        entries = sum(t.size for t in self.biases(name, spec))
        k = parse_quantity(self.keep).of(entries)
        if not 1 <= k <= entries:
            raise MethodError(
                f"{name} with keep={self.keep!r} selects {k:,} of the biases of {spec.family!r}, which has "
                f"{entries:,}; choose from 1 to that many."
            )
        return k

    def interim(self, name: str, spec: BackboneSpec) -> Interim:
        """The search trains all biases, and has a score of each."""
        entries = sum(t.size for t in self.biases(name, spec))
        return Interim(trained=entries, held=entries)


class SearchedBiases(SearchedEntries):
    """The biases whose update the loss would miss most, by a first-order estimate.

    I = Σ −v·∂L/∂v over the last steps of the search estimates for each entry how much the loss would rise if
    its update v were taken back.
    """

    def __init__(self, tensors: Sequence[TensorSpec], k: int, config: BiasSearchConfig) -> None:
        super().__init__(tensors, k, config.search, rewinds=config.rewind)
        self.config = config
        self._scoring = False
        self._scores: dict[str, Tensor] = {}

    def phases(self) -> list[Phase]:
        first, *others = super().phases()
        return [replace(first, run=self._run), *others] if others else [first]

    def _run(self, session: Session) -> None:
        """Take the steps of the search; the last ones score."""
        steps = session.steps
        first = min(steps - 1, int(steps * (1 - self.config.scored)))
        if steps == 1:  # its update comes after its gradient: entries rank by how far they moved
            first = 1
        for step in range(steps):
            self._scoring = step >= first
            if not session.step():
                break
        self._scoring = False

    def begin_search(self) -> None:
        super().begin_search()
        self._scores = {}

    @torch.no_grad()
    def after_backward(self, step: int, total: int) -> None:
        """Add what the gradients of this step say."""
        if self.dense is None or not self._scoring:
            return
        for name in self.dense.names:
            update = self.dense[name]
            if update.grad is not None:
                score = -update * update.grad
                self._scores[name] = self._scores[name] + score if name in self._scores else score

    def scores(self, name: str) -> Tensor:
        """The entries' I, or |I|; of a search that has not scored yet, how far they moved."""
        if not self._scores:
            return super().scores(name)
        found = self._scores.get(name)
        score = torch.zeros_like(self.change(name)) if found is None else found
        return score.abs() if self.config.score == "abs" else score

    def start(self, name: str) -> Tensor | None:
        return None if self.rewinds else self.change(name)

    def deploy(self) -> None:
        super().deploy()
        self._scores = {}

    def end_search(self, n: int | None = None) -> None:
        super().end_search(n)
        self._scores = {}
