"""Which task of a set the rows of a forward are of, for what acts by it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from autopeft.errors import CompositionError
from autopeft.method.contract import Call

__all__ = ["required_tasks", "task_numbers"]

_PRESENT = "tasks present"


def required_tasks(what: str, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """The names that the option `tasks` of something has.

    Raises:
        CompositionError: it has none, one alone, or one twice.
    """
    if tasks is None or len(tasks) < 2 or len(set(tasks)) < len(tasks):
        got = "none" if tasks is None else ", ".join(tasks) or "none"
        raise CompositionError(
            f"{what} acts by the task of a row and needs two or more, but got {got}: train or search with "
            "several (--tasks trec,sms-spam), which names them, or write `tasks: [trec, sms-spam]`."
        )
    return tuple(tasks)


def task_numbers(what: str, tasks: Sequence[str], rows: int, call: Call) -> tuple[Tensor, list[int]]:
    """The task of each row, (rows,), as its number in `tasks`; and the numbers that there are, in order.

    Where a kind of task lays a row out as several sequences, each of them is of the row's task.

    Raises:
        CompositionError: the forward does not say it.
    """
    ids = call.context.task_id
    if ids is None:
        told = ", ".join(f"{number} for {name}" for number, name in enumerate(tasks))
        raise CompositionError(
            f"{what} acts by the task of a row, which this forward does not say: set "
            f"`hybrid.task = {tasks[0]!r}`, or pass `task_id` (batch,), {told}. Layers that are recomputed "
            "without their context (gradient checkpointing in some families) do not know it."
        )
    known = call.context.features
    if _PRESENT not in known:  # asked of the device once for each forward
        known[_PRESENT] = ids.unique().cpu()
    return ids.repeat_interleave(rows // len(ids)), known[_PRESENT].tolist()
