"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopeft.errors import UsageError

__all__ = [
    "BatchSize",
    "ClassWeights",
    "Json",
    "Kind",
    "Label",
    "Labels",
    "MaxLength",
    "Metric",
    "MicroBatch",
    "Model",
    "NoStandIn",
    "OtherModel",
    "Out",
    "Precision",
    "Recipe",
    "RecipeArgument",
    "Run",
    "Seed",
    "Steps",
    "Task",
    "Text",
    "TextPair",
    "class_weights_of",
]

_DATA = "Data"
_TRAINING = "Training"

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Backbone: a packaged alias, a local folder or a hub name.", show_default=True
    ),
]
Task = Annotated[
    str,
    typer.Option(
        "--task",
        "-t",
        help="A name (see `autopeft tasks`), a CSV, JSONL or Parquet file, or a folder in the hub's layout.",
        rich_help_panel=_DATA,
    ),
]
Text = Annotated[
    str | None,
    typer.Option("--text", help="Column that holds the text.", rich_help_panel=_DATA, show_default=False),
]
TextPair = Annotated[
    str | None,
    typer.Option(
        "--text-pair", help="Column of the second text of a pair.", rich_help_panel=_DATA, show_default=False
    ),
]
Label = Annotated[
    str | None,
    typer.Option("--label", help="Column that holds the label.", rich_help_panel=_DATA, show_default=False),
]
Labels = Annotated[int, typer.Option("--labels", min=1, help="Outputs of the task head, for its count.")]
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        help="Kind of task (see `autopeft tasks`); default: the metric's, or what the labels look like.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="Score to maximise; default: the task's own.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        "--class-weights",
        help="'balanced', or one weight for each class, separated by commas.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
NoStandIn = Annotated[
    bool,
    typer.Option(
        "--no-stand-in",
        help="Fail where the hub does not answer, instead of using the packaged stand-in.",
        rich_help_panel=_DATA,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Optimizer steps; default: the effort's.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of everything that is drawn.", rich_help_panel=_TRAINING)
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length", min=4, help="Longest text in tokens.", rich_help_panel=_TRAINING, show_default=False
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, help="Examples for each step.", rich_help_panel=_TRAINING, show_default=False
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        "--micro-batch",
        min=1,
        help="Examples at a time; gradients add up to --batch-size.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of the backbone's weights: fp32, or bf16, which is faster and rougher. A search then tries "
        "recipes in bf16, and trains finalists and baselines in fp32.",
        rich_help_panel=_TRAINING,
    ),
]
Shortcuts = Annotated[
    bool,
    typer.Option(
        "--shortcuts/--no-shortcuts",
        help="Leave out what need not be computed: layers below everything that a recipe alters are answered "
        "from stored states (fp16), the last layer serves only the position that the head reads.",
        rich_help_panel=_TRAINING,
    ),
]
Recipe = Annotated[
    str,
    typer.Option("--recipe", "-r", help="A recipe file, or the name of a fixed recipe (mam, unipelt, …)."),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a fixed recipe (mam, unipelt, …)."),
]
OtherModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Where the backbone is now, if it moved.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder to write; default: a new one under runs/.", show_default=False),
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder, an exported folder, or 'latest'.")
]


def class_weights_of(text: str | None) -> Literal["balanced"] | list[float] | None:
    """`balanced`, or a list of numbers from `1,2.5`.

    Raises:
        UsageError: it is neither.
    """
    if text is None or text == "balanced":
        return text  # type: ignore[return-value]
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--class-weights takes 'balanced' or numbers separated by commas, but got {text!r}."
        ) from error
