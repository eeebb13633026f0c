"""What training needs of a model with something to train on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from autopeft.counting import Counts
from autopeft.recipe import Recipe

__all__ = ["Modules", "Trainable"]

Modules = Mapping[str, nn.Module] | nn.ModuleDict


class Trainable(Protocol):
    """`autopeft.hybrid.Hybrid`, or a baseline.

    Optimizer groups are dicts with `params`, `lr`, `weight_decay` and `name` (an entry, a composition or
    `head`).
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def modules(self) -> Modules: ...

    @property
    def trained_modules(self) -> Modules: ...

    @property
    def needs_prepare(self) -> bool: ...

    def prepare(
        self,
        batches: Callable[[int | None], Iterable[dict[str, Tensor]]],
        objective: Any,
        *,
        kept: Any = None,
    ) -> None: ...

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def counts(self) -> Counts: ...

    def detach(self) -> Any: ...
