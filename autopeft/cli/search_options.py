"""Options of `autopeft search` alone."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Address",
    "Baselines",
    "Budget",
    "CpusPerTrial",
    "DryRun",
    "Effort",
    "Fidelity",
    "FreshBaselines",
    "From",
    "GpusPerTrial",
    "Log",
    "Objective",
    "Resume",
    "Sampler",
    "SearchTask",
    "Space",
    "Strategy",
    "Time",
    "Trials",
    "Workers",
]

_SEARCH, _WORKERS = "Search", "Workers"

Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        help="Limit on deployed parameters: 0.5%, 300k, 1.2M, 0.1%..1%.",
        show_default=False,
    ),
]
SearchTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="A name (see `autopeft tasks`), a CSV, JSONL or Parquet file, or a folder in the hub's layout.",
        rich_help_panel="Data",
        show_default=False,
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Go on with a run that was cut off (a folder, a name, or `latest`), as it was begun.",
        show_default=False,
    ),
]
Space = Annotated[
    str,
    typer.Option(
        "--space", "-s", help="A space (`autopeft spaces`) or a YAML file.", rich_help_panel=_SEARCH
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        help="quick, normal or thorough: trials, steps, rows, fresh seeds. Default: quick on a CPU.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, help="Recipes to train.", rich_help_panel=_SEARCH, show_default=False),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time", help="Time for everything: 90s, 30m, 2h.", rich_help_panel=_SEARCH, show_default=False
    ),
]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy",
        help="What turns the space into candidates: trials, or one of another package.",
        rich_help_panel=_SEARCH,
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="What proposes recipes: gp, tpe, nsga2, evolution, linear or random. Default: tpe, or linear "
        "with --objective score,params.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Fidelity = Annotated[
    str,
    typer.Option(
        "--fidelity",
        help="Let only the better third of the trials go on from rung to rung, by steps, or by steps and "
        "rows (data); none trains all to the end. The first rung is at 40 steps or more.",
        rich_help_panel=_SEARCH,
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        help="score, or score,params to look for small recipes as well as for good ones.",
        rich_help_panel=_SEARCH,
    ),
]
From = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="RUN|RECIPE",
        help="Begin with what another run found, or with a recipe; may be repeated.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Baselines = Annotated[
    str | None,
    typer.Option(
        "--baselines",
        help="all, none, or some of lora,single,random,middle,head; quick takes lora,head, others all.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
FreshBaselines = Annotated[
    bool,
    typer.Option(
        "--fresh-baselines",
        help="Train the baselines again, whatever an earlier search has kept of them.",
        rich_help_panel=_SEARCH,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show size, feasible share, sample recipes, time and memory; start nothing.",
        rich_help_panel=_SEARCH,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Trials at a time.", rich_help_panel=_WORKERS, show_default=False),
]
CpusPerTrial = Annotated[
    int, typer.Option("--cpus-per-trial", min=1, help="CPUs of one trial.", rich_help_panel=_WORKERS)
]
GpusPerTrial = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-trial",
        min=0.0,
        help="GPUs of one trial; 0.25 lets four share one.",
        rich_help_panel=_WORKERS,
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Join this Ray cluster; default: a private one on this machine.",
        rich_help_panel=_WORKERS,
        show_default=False,
    ),
]
Log = Annotated[
    str | None,
    typer.Option(
        "--log",
        help="Log trials and final runs with trackers: some of tensorboard,mlflow,wandb, or none.",
        rich_help_panel=_WORKERS,
        show_default=False,
    ),
]
