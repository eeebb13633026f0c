"""`autopeft search`: the main job."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.console import notify, say, say_json, say_sheet, terminal
from autopeft.cli.options import (
    BatchSize,
    ClassWeights,
    Json,
    Label,
    MaxLength,
    Metric,
    MicroBatch,
    Model,
    NoStandIn,
    Out,
    Precision,
    Seed,
    Steps,
    Task,
    Text,
    TextPair,
    class_weights_of,
)

if TYPE_CHECKING:
    from autopeft.search.api import DryRun, SearchResult

__all__ = ["search"]

_SEARCH, _WORKERS = "Search", "Workers"


def search(
    task: Task,
    budget: Annotated[
        str, typer.Option("--budget", "-b", help="Limit on deployed parameters: 0.5%, 300k, 1.2M, 0.1%..1%.")
    ],
    model: Model = "minilm",
    space: Annotated[
        str,
        typer.Option(
            "--space", "-s", help="A space (`autopeft spaces`) or a YAML file.", rich_help_panel=_SEARCH
        ),
    ] = "default",
    effort: Annotated[
        str | None,
        typer.Option(
            "--effort",
            help="quick, normal or thorough: trials, steps, rows, fresh seeds. Default: quick on a CPU.",
            rich_help_panel=_SEARCH,
            show_default=False,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", min=1, help="Recipes to train.", rich_help_panel=_SEARCH, show_default=False
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", help="Time for everything: 90s, 30m, 2h.", rich_help_panel=_SEARCH, show_default=False
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", help="gp, tpe or random.", rich_help_panel=_SEARCH, show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show size, feasible share, sample recipes, time and memory; start nothing.",
            rich_help_panel=_SEARCH,
        ),
    ] = False,
    steps: Steps = None,
    seed: Seed = 0,
    max_length: MaxLength = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    precision: Precision = "fp32",
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    metric: Metric = None,
    class_weights: ClassWeights = None,
    no_stand_in: NoStandIn = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Trials at a time.", rich_help_panel=_WORKERS, show_default=False
        ),
    ] = None,
    cpus_per_trial: Annotated[
        int, typer.Option("--cpus-per-trial", min=1, help="CPUs of one trial.", rich_help_panel=_WORKERS)
    ] = 1,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-trial",
            min=0.0,
            help="GPUs of one trial; 0.25 lets four share one.",
            rich_help_panel=_WORKERS,
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Join this Ray cluster; default: a private one on this machine.",
            rich_help_panel=_WORKERS,
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Find the best hybrid under a parameter budget, and compare it with LoRA at the same budget.

    Ctrl-C ends the search and keeps the best found so far.

    \b
      autopeft search --budget 0.5% --task sst2
      autopeft search --budget 300k --task reviews.csv --text body --label stars --time 30m
      autopeft search --budget 0.1%..1% --task trec --effort normal --workers 4
      autopeft search --budget 0.5% --task sst2 --space autopeft --dry-run
    """
    arguments: dict[str, Any] = {
        "task": task,
        "budget": budget,
        "model": model,
        "space": space,
        "effort": effort,
        "trials": trials,
        "steps": steps,
        "time": time,
        "seed": seed,
        "sampler": sampler,
        "max_length": max_length,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "precision": precision,
        "text": text,
        "text_pair": text_pair,
        "label": label,
        "metric": metric,
        "class_weights": class_weights_of(class_weights),
        "stand_in": not no_stand_in,
        "workers": workers,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": gpus_per_trial,
        "address": address,
        "out": out,
    }
    given = {key: value for key, value in arguments.items() if value is not None}
    if dry_run:
        _show_plan(given, as_json)
    else:
        _show_result(given, as_json)


def _show_plan(arguments: dict[str, Any], as_json: bool) -> None:
    from autopeft.cli.backbone import quiet_libraries
    from autopeft.report.search import dry_run_data, dry_run_sheets
    from autopeft.report.spaces import size_text
    from autopeft.search.api import plan

    quiet_libraries()
    found: DryRun = plan(notify=notify, **arguments)
    if as_json:
        say_json(dry_run_data(found))
        return
    for sheet in dry_run_sheets(found, size_text(found.prepared.space, found.prepared.spec)):
        say_sheet(sheet)
        say()


def _show_result(arguments: dict[str, Any], as_json: bool) -> None:
    from autopeft.cli.backbone import quiet_libraries
    from autopeft.cli.progress import watch
    from autopeft.search.api import search as run_search

    quiet_libraries()
    stream = sys.stderr if as_json else sys.stdout
    with watch(live=terminal() and not as_json, stream=stream) as reporter:
        result = run_search(reporter=reporter, notify=notify, **arguments)
    if as_json:
        say_json(result.to_dict())
        return
    _print_result(result, arguments)


def _print_result(result: SearchResult, arguments: dict[str, Any]) -> None:
    from autopeft.cli.backbone import spec_for
    from autopeft.graph import build_graph
    from autopeft.report.search import ending, outcome_sheet, winner_text
    from autopeft.report.train import next_steps
    from autopeft.search.runfolder import RunFolder

    data = RunFolder(result.run).manifest()["data"]
    graph = build_graph(result.winner, spec_for(arguments["model"]))
    say()
    say(ending(result))
    say()
    say(winner_text(result, graph, graph.text()))
    say()
    say_sheet(outcome_sheet(result, data, str(arguments["budget"])))
    say()
    other = "trec" if data["name"] != "trec" else "movie-sentences"
    say(next_steps(_short(str(result.run)), other=other))


def _short(run: str) -> str:
    """The run's path as one would type it here."""
    relative = os.path.relpath(run)
    return run if relative.startswith("..") else relative
