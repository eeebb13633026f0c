"""Random numbers of a thread's own: what is drawn depends on the seed alone, whatever other threads draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.devices import generator

__all__ = ["seeded"]

_WITHOUT = ("meta",)  # devices that draw nothing


def seeded(seed: int | None) -> AbstractContextManager[object]:
    """Draw from `seed` within, in this thread; torch's global generators are neither read nor moved.

    A seed gives the numbers that `torch.manual_seed(seed)` gives. `None` leaves the global generators in
    charge.
    """
    return nullcontext() if seed is None else _OwnDraws(seed)


class _OwnDraws(TorchDispatchMode):
    """Hands a generator of its own to every operation that draws (a mode of torch is of its thread alone)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        drawing = _with_generator(func)
        if drawing is not None and given.get("generator") is None:
            # It draws on its first tensor's device, or on that of the tensor that it makes.
            first = next((a for a in args if isinstance(a, Tensor)), None)
            device = torch.device(given.get("device") or ("cpu" if first is None else first.device))
            if device.type not in _WITHOUT:
                if device not in self._generators:
                    self._generators[device] = generator(device, self._seed)
                return drawing(*args, **given, generator=self._generators[device])
        return func(*args, **given)


@cache
def _with_generator(func: Any) -> Callable[..., Any] | None:
    """The form of an operation that takes a generator; `None` of one that draws nothing, or takes none."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    packet = func.overloadpacket
    forms = [func, *(getattr(packet, name) for name in packet.overloads())]
    names = [{argument.name for argument in form._schema.arguments} for form in forms]
    return next((f for f, own in zip(forms, names, strict=True) if own == names[0] | {"generator"}), None)
