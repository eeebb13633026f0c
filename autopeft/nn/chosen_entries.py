"""What masks of the backbone's entries have in common: how many they keep, and how the kept ones act."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator
from torch import Tensor, nn

from autopeft.errors import MethodError, UsageError
from autopeft.method import MethodConfig, WeightTarget
from autopeft.nn.sparse_delta import SparseDelta
from autopeft.quantity import parse_quantity
from autopeft.spec import BackboneSpec, TensorSpec

__all__ = ["ChosenEntries", "KeepConfig"]


class KeepConfig(MethodConfig):
    """Options of a method that keeps k entries."""

    keep: int | str = Field(default="0.5%", description="a share such as '0.1%' or a count such as '30k'")

    @field_validator("keep")
    @classmethod
    def checked(cls, value: int | str) -> int | str:
        """The value, if it is a quantity.

        Raises:
            ValueError: it is none.
        """
        try:
            parse_quantity(value)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return value

    def count(
        self, name: str, tensors: Sequence[TensorSpec], spec: BackboneSpec, *, whole: int | None = None
    ) -> int:
        """k: a share is one of the whole base model, or of `whole`.

        Args:
            name: of the method, as messages call it.
            tensors: among whose entries it chooses.
            whole: what a share is of, where it is not the base model.

        Raises:
            MethodError: that is none of the entries, or more than there are.
        """
        entries = sum(t.size for t in tensors)
        k = parse_quantity(self.keep).of(spec.parameters if whole is None else whole)
        if not 1 <= k <= entries:
            raise MethodError(
                f"{name} with keep={self.keep!r} selects {k:,} entries of {spec.family!r}, which has "
                f"{entries:,}; choose from 1 to that many."
            )
        return k


class ChosenEntries(nn.Module):
    """Values (k,) at k entries of the backbone."""

    def __init__(self, tensors: Sequence[TensorSpec], k: int) -> None:
        super().__init__()
        self.entries = SparseDelta(tensors, k)

    def remarks(self) -> list[str]:
        """How many of the chosen entries are where they were."""
        chosen = self.entries.index >= 0
        still = int((chosen & (self.entries.values.detach() == 0)).sum())
        return [f"{still:,} of {int(chosen.sum()):,} chosen entries did not move."] if still else []

    def weight_targets(self) -> Sequence[WeightTarget]:
        """The tensors with a chosen entry; all of them before anything is chosen."""
        names = self.entries.selected() or [t.name for t in self.entries.tensors]
        return [WeightTarget(tensor=name) for name in names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.entries.apply_to(str(target.tensor), current)
