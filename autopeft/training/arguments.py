"""What `autopeft.train` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from autopeft.arguments import Arguments, Option
from autopeft.training import options as shared
from autopeft.training.options import TRAINING, check_effort, efforts, in_memory

if TYPE_CHECKING:
    from autopeft.recipe import Recipe
    from autopeft.training.events import TrainReporter

    RecipeData = str | Path | Recipe
    ReporterData = TrainReporter | None
else:  # they import torch
    RecipeData, ReporterData = Any, Any | None

__all__ = ["TrainArguments", "TrainCall"]


def _check_recipe(value: Any) -> None:
    from autopeft.errors import RecipeError
    from autopeft.recipe import Recipe

    if not isinstance(value, (str, Recipe)):
        raise RecipeError(f"A recipe is a name, a file or a `Recipe`, but got recipe={value!r}.")


def _check_reporter(value: Any) -> None:
    from autopeft.errors import UsageError
    from autopeft.training.events import TrainReporter

    events = [name for name in vars(TrainReporter) if name.startswith("on_")]
    missing = [name for name in events if not callable(getattr(value, name, None))]
    if missing:
        raise UsageError(
            f"A reporter has the methods {', '.join(events)}, but {value!r} lacks {', '.join(missing)}; make "
            "it a subclass of autopeft.training.SilentTrainReporter."
        )


class TrainArguments(Arguments):
    """Everything that a training run of a fixed recipe is told, and that its manifest records."""

    called: ClassVar[str] = "train"

    recipe: Annotated[
        RecipeData,
        Option(
            help="A recipe file, or the name of a fixed recipe (mam, unipelt, …).",
            doc="a recipe file, the name of a fixed recipe (mam, unipelt, …) or a `Recipe`",
            flags=("--recipe", "-r"),
            typed="str | Path | Recipe",
            cli_type=str,
            check=_check_recipe,
            record=in_memory,
        ),
    ]
    task: shared.TaskOption
    model: shared.Model = "minilm"
    effort: Annotated[
        str, Option(help="{choices}: how many rows and steps.", choices=efforts, check=check_effort)
    ] = "normal"
    steps: shared.Steps = None
    eval_every: Annotated[
        int | None,
        Option(
            help="Score on select every so many steps as well; default: at the end alone.",
            panel=TRAINING,
            least=1,
        ),
    ] = None
    seed: shared.Seed = 0
    max_length: shared.MaxLength = None
    batch_size: shared.BatchSize = 32
    micro_batch: shared.MicroBatch = None
    device: shared.Device = "auto"
    precision: shared.Precision = "fp32"
    quantize: shared.Quantize = None
    memory_saving: shared.MemorySaving = False
    shortcuts: shared.Shortcuts = True
    learn_all: shared.LearnAll = False
    packing: shared.Packing = False
    head_start: shared.HeadStart = "probe"
    text: shared.Text = None
    text_pair: shared.TextPair = None
    label: shared.Label = None
    kind: shared.Kind = None
    label_words: shared.LabelWords = None
    template: shared.Template = None
    metric: shared.Metric = None
    class_weights: shared.ClassWeights = None
    drop_empty: shared.DropEmpty = False
    stand_in: shared.StandIn = True
    out: shared.Out = None
    runs: shared.Runs = "runs"


class TrainCall(TrainArguments):
    """What a call of `autopeft.train` takes beside them."""

    notify: shared.Notify = None
    reporter: Annotated[
        ReporterData,
        Option(
            help="Is told of phases, steps, losses and scores (see `TrainReporter`).",
            typed="TrainReporter | None",
            check=_check_reporter,
            cli=False,
        ),
    ] = None
