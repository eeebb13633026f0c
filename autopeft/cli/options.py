"""Options of the commands that look at recipes and runs, so that they read and mean the same everywhere.

Those of `search`, `train`, `evaluate`, `predict` and `export` are declared beside the functions themselves.
"""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Json", "Labels", "Model", "OtherModel", "RecipeArgument", "Run"]

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Backbone: a packaged alias, a local folder or a hub name.", show_default=True
    ),
]
Labels = Annotated[
    int, typer.Option("--labels", min=1, max=1_000_000, help="Outputs of the task head, for its count.")
]
OtherModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Where the backbone is now, if it moved.", show_default=False),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a fixed recipe (mam, unipelt, …)."),
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder, an exported folder, or 'latest'.")
]
