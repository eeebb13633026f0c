"""Options of `autopeft search` alone."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Address",
    "Budget",
    "CpusPerTrial",
    "DryRun",
    "Effort",
    "GpusPerTrial",
    "Sampler",
    "Space",
    "Time",
    "Trials",
    "Workers",
]

_SEARCH, _WORKERS = "Search", "Workers"

Budget = Annotated[
    str, typer.Option("--budget", "-b", help="Limit on deployed parameters: 0.5%, 300k, 1.2M, 0.1%..1%.")
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
Sampler = Annotated[
    str | None,
    typer.Option("--sampler", help="gp, tpe or random.", rich_help_panel=_SEARCH, show_default=False),
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
