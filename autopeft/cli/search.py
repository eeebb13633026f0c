"""`autopeft search`: the main job."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from autopeft.cli.console import notify, say, say_json, say_sheet, terminal
from autopeft.cli.options import (
    BatchSize,
    ClassWeights,
    Json,
    Kind,
    Label,
    MaxLength,
    Metric,
    MicroBatch,
    Model,
    NoStandIn,
    Out,
    Precision,
    Seed,
    Shortcuts,
    Steps,
    Text,
    TextPair,
    class_weights_of,
)
from autopeft.cli.search_options import (
    Address,
    Baselines,
    Budget,
    CpusPerTrial,
    DryRun,
    Effort,
    Fidelity,
    FreshBaselines,
    From,
    GpusPerTrial,
    Log,
    Objective,
    Resume,
    Sampler,
    SearchTask,
    Space,
    Strategy,
    Time,
    Trials,
    Workers,
)
from autopeft.errors import UsageError

if TYPE_CHECKING:
    from autopeft.search.api import SearchResult

__all__ = ["search"]

_NOT_PASSED_ON = ("as_json", "dry_run", "no_stand_in", "class_weights", "from_", "context")


def search(
    context: typer.Context,
    task: SearchTask = None,
    budget: Budget = None,
    resume: Resume = None,
    model: Model = "minilm",
    space: Space = "default",
    effort: Effort = None,
    trials: Trials = None,
    time: Time = None,
    strategy: Strategy = "trials",
    sampler: Sampler = None,
    fidelity: Fidelity = "steps",
    objective: Objective = "score",
    from_: From = None,
    baselines: Baselines = None,
    fresh_baselines: FreshBaselines = False,
    dry_run: DryRun = False,
    steps: Steps = None,
    seed: Seed = 0,
    max_length: MaxLength = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    precision: Precision = "fp32",
    shortcuts: Shortcuts = True,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    kind: Kind = None,
    metric: Metric = None,
    class_weights: ClassWeights = None,
    no_stand_in: NoStandIn = False,
    workers: Workers = None,
    cpus_per_trial: CpusPerTrial = 1,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    log: Log = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Find the best hybrid under a parameter budget, and compare it with LoRA at the same budget.

    Ctrl-C ends the search and keeps the best found so far; --resume goes on from there, or from a crash.

    \b
      autopeft search --budget 0.5% --task sst2
      autopeft search --budget 300k --task reviews.csv --text body --label stars --time 30m
      autopeft search --budget 0.1%..1% --task trec --effort normal --workers 4
      autopeft search --budget 0.5% --task sst2 --space autopeft --dry-run
      autopeft search --budget 0.5% --task trec --from latest
      autopeft search --resume latest
    """
    # Options are named like the arguments of `autopeft.search`; what was left out takes its default there.
    arguments = {k: v for k, v in locals().items() if k not in _NOT_PASSED_ON and v is not None}
    if resume is not None:
        arguments = _said(context)
    else:
        _need(task, budget)
        arguments.update(stand_in=not no_stand_in, class_weights=class_weights_of(class_weights))
        arguments["warm_start"] = tuple(from_ or ())
    if dry_run:
        _show_plan(arguments, as_json)
    else:
        _show_result(arguments, as_json)


def _said(context: typer.Context) -> dict[str, Any]:
    """The options that stand on the command line: a resumed search takes all others from its run."""
    words = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        # By name: typer may bring a click of its own.
        if source is not None and source.name == "COMMANDLINE":
            words[name] = value
    words.pop("as_json", None)
    if words.pop("dry_run", False):
        raise UsageError("--dry-run says what a new search would do; it does not go with --resume.")
    return words


def _need(task: str | None, budget: str | None) -> None:
    missing = [name for name, value in (("--budget", budget), ("--task", task)) if value is None]
    if missing:
        raise UsageError(
            f"A search needs {' and '.join(missing)}: autopeft search --budget 0.5% --task sst2; "
            "or --resume RUN to go on with one."
        )


def _show_plan(arguments: dict[str, Any], as_json: bool) -> None:
    from autopeft.cli.backbone import quiet_libraries
    from autopeft.report.search import dry_run_data, dry_run_sheets
    from autopeft.report.spaces import size_text
    from autopeft.search.api import plan

    quiet_libraries()
    found = plan(notify=notify, **arguments)
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
    _print_result(result)


def _print_result(result: SearchResult) -> None:
    from autopeft.cli.backbone import spec_for
    from autopeft.graph import build_graph
    from autopeft.report.search import ending, outcome_sheet, winner_text
    from autopeft.report.train import next_steps
    from autopeft.runs.folder import RunFolder

    manifest = RunFolder(result.run).manifest()
    data = manifest["data"]
    graph = build_graph(result.winner, spec_for(manifest["model"]))
    say()
    say(ending(result))
    say()
    say(winner_text(result, graph, graph.text()))
    say()
    say_sheet(outcome_sheet(result, data, manifest["budget"]))
    say()
    other = "trec" if data["name"] != "trec" else "movie-sentences"
    say(next_steps(_short(str(result.run)), other=other))


def _short(run: str) -> str:
    """The run's path as one would type it here."""
    relative = os.path.relpath(run)
    return run if relative.startswith("..") else relative
