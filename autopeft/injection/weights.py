"""weight(module): deltas on backbone tensors, swapped in for the length of a module's forward.

A pre-hook puts new tensors into `module._parameters`, a post-hook that is always called puts the originals
back, so state-dict keys never change, recomputation under gradient checkpointing sees the same tensors, and
an exception leaves the backbone as it was. (`parametrize` renames keys; `functional_call` loses gradients
under reentrant checkpointing.)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from autopeft.backbones import Slice
from autopeft.composition import Child
from autopeft.errors import UsageError
from autopeft.injection.frames import frames
from autopeft.method import WeightTarget

__all__ = ["ParameterPatch", "Part", "WeightHooks", "owners_of"]

_PATIENCE = 60.0  # seconds that a thread waits for its turn at a module


def owners_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By a parameter's id, the modules that hold it and the name that it has there."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, leaf))
    return owners


@dataclass(frozen=True)
class Part:
    """The part of a stored tensor that is a site's (out, in) weight: transposed (Conv1D), and a slice of its
    outputs."""

    transposed: bool = False
    out_slice: Slice | None = None

    def of(self, stored: Tensor) -> Tensor:
        """The site's weight, (out, in)."""
        weight = stored.t() if self.transposed else stored
        return weight if self.out_slice is None else self.out_slice.of(weight, 0)

    def put(self, stored: Tensor, weight: Tensor) -> Tensor:
        """`stored` with the site's part replaced by `weight` (a new tensor)."""
        if self.out_slice is not None:
            whole = stored.t() if self.transposed else stored
            weight = self.out_slice.put(whole, weight, 0)
        return weight.t() if self.transposed else weight


@dataclass
class ParameterPatch:
    """The modules that alter one parameter: `whole` read the stored tensor, `parts` a site's (out, in)
    weight."""

    whole: list[tuple[WeightTarget, Child]] = field(default_factory=list)
    parts: list[tuple[WeightTarget, Part, Sequence[Child]]] = field(default_factory=list)

    def new(self, original: Tensor) -> Tensor:
        """The tensor to compute with: every delta is read off the original, and all of them add."""
        current = original
        for target, child in self.whole:
            current = child.weight(target, original, current)
        for target, part, children in self.parts:
            before, now = part.of(original), part.of(current)
            for child in children:
                now = child.weight(target, before, now)
            current = part.put(current, now)
        return current


class WeightHooks:
    """Swaps the patched parameters of one module around its forward.

    A module has one set of parameters for all threads, so that they take turns at it.

    Args:
        token: the hybrid's.
    """

    def __init__(self, token: int) -> None:
        self.token = token
        self.patches: dict[str, ParameterPatch] = {}
        self._kept: dict[str, nn.Parameter | None] | None = None
        self._turn, self._owner = threading.RLock(), 0

    def __getstate__(self) -> dict[str, Any]:
        return {"patches": self.patches, "token": self.token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        WeightHooks.__init__(self, state["token"])
        self.patches = state["patches"]

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.token in frames.bare:
            return
        if not self._turn.acquire(timeout=_PATIENCE):
            raise UsageError(
                f"Another thread has been in a {type(module).__name__} of this model, whose weights a hybrid "
                f"changes, for {_PATIENCE:g} s; give each thread a model of its own (copy.deepcopy)."
            )
        try:
            if self._put_back(module):  # a forward of this thread was cut off by Ctrl-C, and has its turn yet
                self._turn.release()
            originals = {name: module._parameters[name] for name in self.patches}
            # All new tensors are made before the first is swapped in: a failing patch leaves the module
            # untouched.
            new = {}
            for name, patch in self.patches.items():
                original = originals[name]
                if original is None:
                    raise RuntimeError(
                        f"The module has no parameter {name!r} any more; detach the hybrid before changing "
                        "the model."
                    )
                new[name] = patch.new(original)
        except BaseException:
            self._turn.release()
            raise
        self._kept, self._owner = originals, threading.get_ident()
        module._parameters.update(new)  # type: ignore[arg-type]

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Called also where `before` was refused, while another thread has its turn.
        if self.token not in frames.bare and self._owner == threading.get_ident():
            self._put_back(module)
            self._turn.release()

    def settle(self, module: nn.Module) -> None:
        """Put back what a forward left swapped that was cut off by Ctrl-C: no hook runs then."""
        self._put_back(module)
        self._turn = threading.RLock()

    def _put_back(self, module: nn.Module) -> bool:
        if self._kept is None:
            return False
        module._parameters.update(self._kept)
        self._kept, self._owner = None, 0
        return True
