"""`autopeft search`: the main job."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from autopeft.cli.console import Told, notify, say, say_json, say_sheet, terminal
from autopeft.cli.declared import Given, declared, said
from autopeft.cli.options import Json
from autopeft.errors import UsageError
from autopeft.interruption import exit_code
from autopeft.search.planning.arguments import FIRST, SearchCall

__all__ = ["search"]


@declared(SearchCall, first=FIRST)
def search(
    context: typer.Context,
    given: Given,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show size, feasible share, sample recipes, time and memory; start nothing.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the best hybrid under a parameter budget, and compare it with LoRA at the same budget.

    Ctrl-C or SIGTERM ends the search and keeps the best found so far; --resume goes on from there, or from a
    crash.

    \b
      autopeft search --budget 0.5% --task sst2
      autopeft search --budget 300k --task reviews.csv --text body --label stars --time 30m
      autopeft search --budget 0.1%..1% --task trec --effort normal --workers 4
      autopeft search --budget 0.5% --task sst2 --space autopeft --dry-run
      autopeft search --budget 0.5% --task trec --goal cheapest
      autopeft search --budget 0.5% --task trec --from latest
      autopeft search --resume latest
    """
    if "resume" in given:
        if dry_run:
            raise UsageError("--dry-run says what a new search would do; it does not go with --resume.")
        # A resumed search takes all that is not on the command line from its run.
        named = said(context)
        given = {name: value for name, value in given.items() if name in named}
    else:
        options = SearchCall.declared()
        needed = [name for name in SearchCall.needed() if name not in given]
        if needed:
            missing = sorted(options[name].spellings(name)[0] for name in needed)
            raise UsageError(
                f"A search needs {' and '.join(missing)}: autopeft search --budget 0.5% --task sst2; "
                "or --resume RUN to go on with one."
            )
    if dry_run:
        _show_plan(given, as_json)
        return

    from autopeft.assets import quiet_libraries
    from autopeft.backbones import spec_of
    from autopeft.cli.progress import watch
    from autopeft.graph import build_graph, draw_text
    from autopeft.report.backbone import config_of
    from autopeft.report.search import ending, outcome_sheet, winner_text
    from autopeft.runs.folder import RunFolder, as_typed
    from autopeft.search.api import search as run_search
    from autopeft.search.planning.resume import resume_command
    from autopeft.training.commands import next_steps

    quiet_libraries()
    stream = sys.stderr if as_json else sys.stdout
    with watch(live=terminal() and not as_json, stream=stream) as reporter:
        result = run_search(reporter=reporter, notify=notify, **given)
    if as_json:
        say_json(result.to_dict())
    else:
        manifest = RunFolder(result.run).manifest()
        data = manifest["data"]
        graph = build_graph(result.winner, spec_of(config_of(manifest["model"], notify)))
        say(f"\n{ending(result)}\n\n{winner_text(result, draw_text(graph))}\n")
        say_sheet(outcome_sheet(result, data, manifest["budget"]))
        say()
        about = {"task": data["name"], "model": manifest["model"], "kind": data.get("kind")}
        say(next_steps(as_typed(result.run), pairs=bool(data.get("pairs")), **about))
    if result.interrupted:
        notify(f"Interrupted. Go on with: {resume_command(result.run, given)}")
        raise typer.Exit(Told(exit_code()))


def _show_plan(given: Given, as_json: bool) -> None:
    from autopeft.assets import quiet_libraries
    from autopeft.report.search import dry_run_data, dry_run_sheets
    from autopeft.report.spaces import size_text
    from autopeft.search.api import plan

    quiet_libraries()
    found = plan(notify=notify, **given)
    if as_json:
        say_json(dry_run_data(found))
        return
    for sheet in dry_run_sheets(found, size_text(found.prepared.space, found.prepared.spec)):
        say_sheet(sheet)
        say()
