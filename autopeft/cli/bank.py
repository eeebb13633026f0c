"""`autopeft bank`: trained hybrids that later recipes start from, or are built of."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import say, say_json, say_sheet
from autopeft.cli.options import Json
from autopeft.errors import UsageError

__all__ = ["bank"]


class Action(str, Enum):
    """What is done to the bank."""

    ADD, LIST, SHOW, REMOVE = "add", "list", "show", "remove"


def bank(
    action: Annotated[Action, typer.Argument(help="add, list, show or remove.")] = Action.LIST,
    hybrid: Annotated[
        str | None,
        typer.Argument(
            help="To add: a run, or a folder with a saved hybrid. To show or remove: a name in the bank."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Its name in the bank; default: made of task and recipe.")
    ] = None,
    root: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Keep trained hybrids, in the folder `bank`, and name them in recipes: `inputs: [bank:NAME]`.

    \b
      autopeft bank add latest --name reviews
      autopeft bank list
      autopeft bank show reviews
      autopeft bank remove reviews
    """
    from autopeft import bank as kept
    from autopeft.report.bank import bank_sheet, kept_sheet

    if action is Action.LIST:
        found = list(kept.entries())
        if as_json:
            say_json([e.model_dump() if isinstance(e, kept.BankEntry) else vars(e) for e in found])
        else:
            say_sheet(bank_sheet(found))
        return
    if hybrid is None:
        what = "a run, as `autopeft runs` lists it" if action is Action.ADD else "a name in the bank"
        raise UsageError(f"`autopeft bank {action.value}` needs {what}.")
    if action is Action.REMOVE:
        kept.remove(hybrid)
        say(f"{hybrid} is no longer in the bank.")
        return
    entry = kept.add(hybrid, name, runs=root) if action is Action.ADD else kept.entry(hybrid)
    if as_json:
        say_json(entry.model_dump())
        return
    say_sheet(kept_sheet(entry))
