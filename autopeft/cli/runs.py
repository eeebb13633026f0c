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
    root: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs, newest first, or show one: what its winner starts from, every trial, the finals, the
    front, and a few answers that its winner wrote.

    \b
      autopeft runs
      autopeft runs latest
      autopeft runs latest --json
    """
    from autopeft.report.runs import front_sheet, inputs_of, runs_sheet, samples_sheet, trials_sheet
    from autopeft.runs.documents import read_result
    from autopeft.runs.folder import list_runs, load_run, read_parts

    if run is None:
        found = [folder.summary() for folder in list_runs(root)]
        if as_json:
            say_json(found)
        else:
            say_sheet(runs_sheet(found, str(root)))
        return
    folder = load_run(run, root=root)
    parts = read_parts(folder)
    if as_json or parts.manifest is not None:  # else the table says it
        for problem in parts.problems:
            notify(problem)
    if as_json:
        say_json(
            {
                "manifest": parts.manifest,
                "result": parts.result,
                "trials": [asdict(record) for record in parts.trials],
                "finals": [asdict(record) for record in parts.finals],
                "front": [asdict(point) for point in parts.front],
            }
        )
        return
    say_sheet(runs_sheet([folder.summary()], str(root)))
    result = read_result(parts.result or {})
    for line in inputs_of(result.recipe):
        say(line)
    written = samples_sheet(result.samples, result.metric or "score")
    for sheet in (trials_sheet([*parts.trials, *parts.finals]), front_sheet(parts.front), written):
        if sheet.rows:
            say()
            say_sheet(sheet)
