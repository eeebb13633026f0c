"""`autopeft tasks`: what can be learnt from without bringing data."""

from __future__ import annotations

from autopeft.cli.console import say_json, say_sheet
from autopeft.cli.options import Json

__all__ = ["tasks"]


def tasks(as_json: Json = False) -> None:
    """List the tasks that have a name. Your own data needs none:

    \b
      autopeft tasks
      autopeft search --task reviews.csv --text body --label stars --budget 0.5%
    """
    from autopeft.report.tasks import tasks_sheet
    from autopeft.tasks import list_tasks

    found = list_tasks()
    if as_json:
        say_json(found)
    else:
        say_sheet(tasks_sheet(found))
