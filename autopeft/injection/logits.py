"""Modules that act on logits: one hook behind the linear map that yields them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from autopeft.errors import CompositionError
from autopeft.injection.bind import in_own_dtype
from autopeft.injection.dispatch import first_input
from autopeft.injection.frames import frames
from autopeft.method import Call, Context

__all__ = ["LogitsHook"]

_KEEP = "logits_to_keep"


class LogitsHook:
    """Adds what the modules make of the last map's input and output. Whatever narrows that map to some of the
    positions has done so before: the hook sees the map's own input.

    Args:
        modules: in file order.
        token: the hybrid's.
    """

    def __init__(self, modules: Sequence[Any], token: int) -> None:
        self.modules, self.token = list(modules), token

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In front of the whole model: whether its caller picks positions by their numbers."""
        frames.picks = isinstance(kwargs.get(_KEEP), Tensor)

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        hidden, logits = first_input(args, kwargs), output
        context = frames.behind.pop(self.token, None) or Context(hybrid=self.token, lost=True)
        positions, picks = frames.read, frames.picks

        def read(states: Tensor) -> Tensor:
            """Narrows states (batch, tokens, …) to the positions of `hidden`, (N, …) or (batch, k, …)."""
            if hidden.ndim == 3 and not picks:
                return states[:, states.shape[1] - hidden.shape[1] :]
            if hidden.ndim == 2 and positions is not None and positions.shape == states.shape[:2]:
                return states[positions]
            raise CompositionError(
                "It is not known of which tokens these logits are, and what acts on them reads the text: "
                f"call the model without {_KEEP}, or with the number of the last tokens."
            )

        call = Call(context, read=read)
        for one in self.modules:
            output = output + in_own_dtype(one, partial(one.logits, call=call), hidden, logits)
        return output
