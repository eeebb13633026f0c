"""`autopeft bank`: trained hybrids that later recipes start from, or are built of."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Json
from autopeft.errors import UsageError
from autopeft.starts.arguments import RankArguments

__all__ = ["bank"]


class Action(str, Enum):
    """What is done to the bank."""

    ADD, LIST, SHOW, REMOVE, RANK = "add", "list", "show", "remove", "rank"


@declared(RankArguments)
def bank(
    given: Given,
    action: Annotated[Action, typer.Argument(help="add, list, show, remove or rank.")] = Action.LIST,
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
      autopeft bank rank --task new.csv
    """
    if action is Action.RANK:
        if hybrid is not None:
            raise UsageError(
                f"`autopeft bank rank` ranks all of the bank, but got {hybrid!r}; name the task by --task."
            )
        rank_all(given, as_json=as_json)
        return
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


def rank_all(given: Given, *, as_json: bool) -> None:
    """Rank the bank's hybrids as starts for the task."""
    from autopeft.assets import quiet_libraries
    from autopeft.report.bank import ranking_sheet
    from autopeft.starts.ranking import rank

    quiet_libraries()
    found = rank(notify=notify, **given)
    if as_json:
        say_json(found.to_dict())
    else:
        say_sheet(ranking_sheet(found))
