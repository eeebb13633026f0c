"""The way out of full memory for what computes rows one after the other: fewer of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from autopeft.devices import empty_cache, generator_state, restore_generator
from autopeft.training.distributed import team_of
from autopeft.training.errors import OutOfMemory, ran_out_of_memory

__all__ = ["with_fewer_rows"]

_T = TypeVar("_T")


def with_fewer_rows(act: Callable[[int], _T], rows: int, model: nn.Module, *, doing: str) -> _T:
    """What `act` returns for so many rows at once. It begins again with half as many, from the same random
    state, where memory does not suffice; in several processes at once, which would have to do so together,
    it does not.

    Args:
        act: takes how many rows go through the model at once.
        rows: at once at first.
        model: what they go through.
        doing: what the message begins with: "Evaluation".

    Raises:
        OutOfMemory: it does not suffice for single rows, or for so many in several processes.
    """
    device, alone = next(model.parameters()).device, team_of(model).size == 1
    state = generator_state(device)
    while True:
        try:
            return act(rows)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if not alone:
                raise OutOfMemory(
                    f"{doing} ran out of memory with {rows} rows at once; lower --micro-batch "
                    "(`micro_batch`) or `max_length`."
                ) from error
            if rows == 1:
                raise OutOfMemory(
                    f"{doing} ran out of memory even with single rows; lower `max_length`, or take a "
                    "backbone in bf16."
                ) from error
        # Past the handler the failed pass's frames are gone, and what they held can be freed.
        rows = max(1, rows // 2)
        empty_cache(device)
        restore_generator(state, device)
