"""`autopeft report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.console import notify, say
from autopeft.cli.options import OtherModel

__all__ = ["report"]


def report(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run's name or folder, or 'latest'.")
    ] = "latest",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; default: report.html in the run's folder."),
    ] = None,
    root: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
    model: OtherModel = None,
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the file in the browser once it is written.")
    ] = False,
) -> None:
    """Write a run, finished or not, as one HTML file that needs no network.

    The winner's graph layer by layer, where its parameters went, baselines, the front, what mattered, every
    trial, the manifest and how to repeat it.

    \b
      autopeft report
      autopeft report latest --open
      autopeft report my-run --out my-run.html
    """
    import webbrowser

    from autopeft.assets import quiet_libraries
    from autopeft.report.html import write_report
    from autopeft.runs.folder import load_run

    quiet_libraries()
    path = write_report(load_run(run, root=root), out, model=model, notify=notify)
    say(str(path))
    if show and not webbrowser.open(path.absolute().as_uri()):
        notify("No browser could be started; open the file yourself.")
