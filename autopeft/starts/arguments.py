"""What ranking the bank takes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from autopeft.arguments import Arguments, Option
from autopeft.training import options as shared

__all__ = ["RankArguments"]


class RankArguments(Arguments):
    """The task that hybrids of the bank are ranked for, and the backbone."""

    called: ClassVar[str] = "rank"

    task: Annotated[
        shared.TaskData,
        Option(
            help="To rank: the task that is to start from one of them.",
            doc="the task that is to start from one of them, by name, path, or as rows in memory",
            flags=("--task", "-t"),
            typed=f"{shared.TASK_TYPES} | None",
            cli_type=str,
            check=shared.check_task,
            record=shared.in_memory,
        ),
    ] = None
    model: shared.Model = "minilm"
    text: shared.Text = None
    text_pair: shared.TextPair = None
    label: shared.Label = None
    kind: shared.Kind = None
    drop_empty: shared.DropEmpty = False
    stand_in: shared.StandIn = True
    seed: shared.Seed = 0
    max_length: shared.MaxLength = None
    device: shared.Device = "auto"
    notify: shared.Notify = None
