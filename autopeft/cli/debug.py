"""`autopeft debug`: one job of a run again, in this process."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.console import notify, say
from autopeft.errors import UsageError

if TYPE_CHECKING:
    from autopeft.search.controller.rerun import Rerun

__all__ = ["debug"]


def debug(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder, or 'latest'.")],
    job: Annotated[
        str,
        typer.Argument(metavar="JOB", help="A job, named as in the run's logs/, or the number of a trial."),
    ],
    pdb: Annotated[
        bool, typer.Option("--pdb", help="Where it fails, open the debugger at the failing line.")
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option(
            "--attempt",
            min=1,
            help="Of a job whose worker was lost, which attempt; default: the last.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="MODULE:FUNCTION",
            help="Where the search was scored by a function of your own: that function. The name in the run "
            "folder imports nothing.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run one job of a search again, in this process, and show where it fails.

    It has the same recipe, seed, steps, rows and data; the run's files are not changed. What the search kept
    of the job is in logs/ in the run folder: JOB.txt has its error, process and output.

    \b
      autopeft debug latest 3
      autopeft debug latest trial-3-120 --pdb
      autopeft debug runs/my-run confirm-7-s1000
      autopeft debug latest 3 --metric my_metrics:first_number

    Exit codes: 0 the job went well, 1 it failed as shown, 2 bad usage.
    """
    from autopeft.assets import quiet_libraries
    from autopeft.runs.folder import load_run
    from autopeft.search.controller.rerun import prepare_rerun

    quiet_libraries()
    own = None if metric is None else _function(metric)
    folder = load_run(run)
    found = prepare_rerun(folder, job, attempt=attempt, notify=notify, metric=own)
    _run(found, folder.name, pdb=pdb)


def _run(found: Rerun, name: str, *, pdb: bool) -> None:
    """Run the job and say how it ended.

    Raises:
        typer.Exit: it failed.
    """
    again = found.job
    until = getattr(again, "until", None) or again.steps
    work = f"{until} steps" if until else "no training"
    say(f"{again.id} of {name}: {again.label}, seed {again.seed}, {work}")
    for line in found.notices:
        notify(line)
    if found.log.exists():
        notify(f"What the search kept of it: {found.log}")
    try:
        result = found.run(lambda step, loss: notify(f"step {step} of {until}, loss {loss:.4f}"))
    except Exception as error:
        traceback.print_exception(error, file=sys.stderr)
        if pdb:
            _post_mortem(error)
        raise typer.Exit(1) from error
    if result.error is not None:
        notify(f"{again.id} failed: {result.error}")
        raise typer.Exit(1)
    scores = ", ".join(f"{split} {score:.4f}" for split, score in result.scores.items())
    loss = "" if result.train_loss is None else f", train loss {result.train_loss:.6g}"
    state = "paused" if result.paused else "complete"
    say(f"{again.id} is {state}: {scores}{loss}")


def _post_mortem(error: Exception) -> None:
    import pdb

    pdb.post_mortem(error.__traceback__)


def _function(text: str) -> Callable[..., Any]:
    """The function that the option names.

    Raises:
        UsageError: it names none.
    """
    from autopeft.tasks.kinds import function_of

    found = function_of(text)
    if isinstance(found, str):
        raise UsageError(
            f"--metric {text}: a run keeps its metric; only a function of your own is given again, as "
            "module:function."
        )
    return found
