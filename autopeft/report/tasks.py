"""Tasks as tables."""

from __future__ import annotations

from collections.abc import Iterable

from autopeft.report.sheet import Sheet
from autopeft.report.text import number
from autopeft.tasks import Source, TaskInfo, get_kind, kind_names

__all__ = ["data_line", "tasks_sheet"]


def tasks_sheet(tasks: Iterable[TaskInfo]) -> Sheet:
    """The tasks that have a name."""
    rows = tuple(
        (t.name, t.origin, number(t.rows), str(t.classes), t.metric, t.summary, t.cluster or "", t.licence)
        for t in tasks
    )
    kinds = ", ".join(f"{name} ({get_kind(name).summary})" for name in kind_names())
    return Sheet(
        ("task", "from", "rows", "classes", "metric", "what it is", "texts", "licence"),
        rows,
        notes=(
            "Tasks with the same name under texts share texts: what one shows is no evidence for another.",
            "gym:NAME is a task as well, such as gym:chain_sum?max_terms=3: reasoning-gym makes its rows "
            "(autopeft[gym]), of which those of train, select and test share no prompt.",
            "A CSV, JSONL or Parquet file, or a folder in the hub's layout, is a task as well.",
            f"Kinds of task, for --kind: {kinds}.",
            "`autopeft search --task trec --budget 0.5%` finds a recipe for one.",
        ),
        right=frozenset({"rows", "classes"}),
        fold=frozenset({"what it is", "licence"}),
        drop=("licence", "texts", "from"),
    )


def data_line(source: Source) -> str:
    """Which data the scores belong to; every score table shows it."""
    if source.stand_in_for is not None:
        return (
            f"Data: {source.name}, the packaged stand-in for {source.stand_in_for}; not comparable with "
            f"figures of {source.stand_in_for}."
        )
    return f"Data: {source.name} ({source.origin})."
