"""`autopeft runs`: what has been run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.options import Json

__all__ = ["runs"]


def runs(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Show this run's trials; left out, all runs are listed."),
    ] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs, newest first, or show one: every trial, the finals and the front.

    \b
      autopeft runs
      autopeft runs latest
      autopeft runs latest --json
    """
    from autopeft.report.runs import front_sheet, runs_sheet, trials_sheet
    from autopeft.runs.folder import Points, list_runs, load_run

    if run is None:
        found = [folder.summary() for folder in list_runs(root)]
        if as_json:
            say_json(found)
        else:
            say_sheet(runs_sheet(found, str(root)))
        return
    folder = load_run(run, root=root)
    trials, finals = folder.trials(), folder.finals()
    front = folder.front() if (folder.path / "front.json").exists() else Points()
    for problem in (trials.problem, finals.problem, front.problem):
        if problem is not None:
            notify(problem)
    if as_json:
        result = folder.result() if (folder.path / "result.json").exists() else None
        say_json(
            {
                "manifest": folder.manifest(),
                "result": result,
                "trials": [asdict(record) for record in trials.records],
                "finals": [asdict(record) for record in finals.records],
                "front": [asdict(point) for point in front.points],
            }
        )
        return
    say_sheet(runs_sheet([folder.summary()], str(root)))
    for sheet in (trials_sheet([*trials.records, *finals.records]), front_sheet(front.points)):
        if sheet.rows:
            say()
            say_sheet(sheet)
