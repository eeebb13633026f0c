"""What an entry of a saved hybrid hands to one that starts from it (a recipe's `from:`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from autopeft.errors import MethodError

__all__ = ["StartsFrom", "Stored"]


@dataclass(frozen=True)
class Stored:
    """One entry of a saved hybrid, in deployed form.

    Attributes:
        input: the recipe's name for what it is from.
        entry: its name there.
        method: the method that left it.
        tensors: by their names in the module; behind `stack.layer.site.` where they belong to a site. They
            are on the CPU.
        options: those that its recipe gives it.
        own: whether that is the method of the entry that starts from it.
        family: of the backbone that it was trained on, where it tells.
    """

    input: str
    entry: str
    method: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    family: str | None = None

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.entry!r} ({self.method}) of the input {self.input!r}"

    def tensor(self, name: str, shape: tuple[int, ...], way_out: str) -> Tensor:
        """The finite numbers of this name.

        Args:
            name: in `tensors`.
            shape: that it must have.
            way_out: what to do where it is another, as the last part of a sentence.

        Raises:
            MethodError: it is missing, has another shape, or holds what is no finite number.
        """
        found = self.tensors.get(name)
        if found is None or tuple(found.shape) != shape or not found.is_floating_point():
            has = "none" if found is None else f"{found.dtype} {tuple(found.shape)}"
            there = ", ".join(list(self.tensors)[:5]) or "no tensors"
            raise MethodError(
                f"{self.label} was to give {name!r} of shape {shape}, but has {has} (there: {there}); "
                f"{way_out}."
            )
        if not found.isfinite().all():
            raise MethodError(f"{self.label} holds numbers in {name!r} that are not finite; {way_out}.")
        return found


@runtime_checkable
class StartsFrom(Protocol):
    """Makes its first values of what other trainings have left: chooses among them, averages, projects.

    `start_from` gets what the entry's `from:` names, in its order, once at attach and behind the other
    initialisation. A module without it gets its tensors by name from one entry of the same method.
    """

    def start_from(self, stored: tuple[Stored, ...]) -> None: ...
