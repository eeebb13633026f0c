"""Options that several functions and commands share, so that they read and mean the same everywhere.

Each is a type with its `Option`; the function's own `Arguments` give it a name and a default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from autopeft.arguments import Option
from autopeft.errors import TaskError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from autopeft.tasks import Task

    TaskData: TypeAlias = str | Path | Dataset | DatasetDict | DataFrame | Task
    ModelData: TypeAlias = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
else:  # these take seconds to import
    TaskData = ModelData = Any

__all__ = [
    "BatchSize",
    "ClassWeights",
    "Device",
    "DropEmpty",
    "HeadStart",
    "Kind",
    "Label",
    "LabelWords",
    "MaxLength",
    "MaxTokens",
    "MemorySaving",
    "Metric",
    "MicroBatch",
    "Model",
    "ModelData",
    "Notify",
    "OtherDevice",
    "OtherModel",
    "OtherPrecision",
    "OtherQuantize",
    "Out",
    "Precision",
    "Quantize",
    "Runs",
    "Seed",
    "Shortcuts",
    "StandIn",
    "Steps",
    "TaskData",
    "TaskOption",
    "Template",
    "Text",
    "TextPair",
    "check_effort",
    "check_task",
    "efforts",
    "in_memory",
    "is_live",
    "is_rows",
    "rows",
]

DATA, TRAINING = "Data", "Training"
MetricFunction = Callable[[list[Any], list[Any]], float]
HEAD_STARTS = ("probe", "random")
TASK_TYPES = "str | Path | Dataset | DatasetDict | DataFrame | Task"
_ROWS = "a `datasets.Dataset`, a `DatasetDict` or a pandas `DataFrame`, a loaded task or a set of tasks"
_TASK = "autopeft.tasks.task"


def _constant(module: str, name: str) -> Any:
    """A constant of a module that is imported when it is asked for."""
    return getattr(import_module(module), name)


efforts = partial(_constant, "autopeft.effort", "EFFORTS")
_precisions = partial(_constant, "autopeft.assets.precision", "PRECISIONS")
_quantized = partial(_constant, "autopeft.assets.quantizing", "QUANTIZED")


def check_effort(name: str) -> object:
    from autopeft.effort import choose_effort

    return choose_effort(name)


def _check_precision(name: str) -> object:
    from autopeft.assets.precision import dtype_of

    return dtype_of(name)


def _check_quantize(name: str) -> object:
    from autopeft.assets.quantizing import check_quantize

    return check_quantize(name)


def _other_quantized() -> Iterable[str]:
    return ("none", *_quantized())


def _check_other_quantize(name: str) -> object:
    return name if name == "none" else _check_quantize(name)


def _check_metric(value: str | MetricFunction) -> object:
    from autopeft.tasks.kinds import get_metric

    return value if callable(value) else get_metric(value)


def _metric_named(text: str) -> str | MetricFunction:
    from autopeft.tasks.kinds import function_of

    return function_of(text)


def metric_text(value: Any) -> Any:
    """The name of a metric, `module:function` of a function."""
    from autopeft.tasks.kinds import metric_name

    return metric_name(value)


def _check_kind(name: str) -> object:
    from autopeft.tasks.kinds import get_kind

    return get_kind(name)


def _check_words(value: Any) -> object:
    from autopeft.tasks.kinds.verbaliser import LabelWords

    return LabelWords.of(value)


def _check_template(text: str) -> object:
    from autopeft.tasks.kinds.verbaliser import Template

    return Template.parse(text)


def words_text(value: Any) -> Any:
    """Label words as text."""
    if value is None:
        return None
    from autopeft.tasks.kinds.verbaliser import words_text

    return words_text(value)


def is_rows(value: Any) -> bool:
    """Whether it is a table of `datasets` or pandas, or a loaded task, without importing any of them."""
    modules = [c.__module__ for c in type(value).__mro__]
    return any(name.partition(".")[0] in ("datasets", "pandas") or name == _TASK for name in modules)


def is_live(value: Any) -> bool:
    """Whether it is a pair of a loaded model and its tokenizer."""
    return isinstance(value, tuple)


def in_memory(value: Any) -> Any:
    """What a manifest says of an argument: the value, or of an object in memory what it was."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if is_rows(value):
        from autopeft.tasks.memory import describe

        return {"memory": describe(value)}
    if is_live(value):
        return {"memory": ", ".join(type(part).__name__ for part in value)}
    return {"memory": f"{type(value).__name__} {getattr(value, 'name', '')}".strip()}


def check_task(value: Any) -> None:
    if not isinstance(value, str) and not is_rows(value):
        raise TaskError(f"A task is a name, a path, {_ROWS}, but got task={value!r}.")


def _check_model(value: Any) -> None:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

    if isinstance(value, str):
        return
    if not (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], PreTrainedModel)
        and isinstance(value[1], PreTrainedTokenizerBase | BaseImageProcessor)
    ):
        what = f"a lone {type(value).__name__}" if isinstance(value, PreTrainedModel) else repr(value)
        raise UsageError(
            "A model is a name, a folder, or a pair (model, tokenizer), of images (model, image processor), "
            f"but got {what[:80]}."
        )


def _weights_of(text: str) -> Literal["balanced"] | list[float]:
    if text == "balanced":
        return "balanced"
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--class-weights takes 'balanced' or numbers separated by commas, but got {text!r}."
        ) from error


def _weights_text(value: str | Sequence[float]) -> str:
    return value if isinstance(value, str) else ",".join(map(repr, value))


TaskOption = Annotated[
    TaskData,
    Option(
        help="A name (see `autopeft tasks`), a CSV, JSONL or Parquet file, or a folder in the hub's layout; "
        "several, separated by commas, or a YAML file of several, are learnt by one hybrid.",
        doc=f"a task's name, a data file or folder, several of them separated by commas, a YAML file of "
        f"several, or the rows themselves: {_ROWS}. Rows in memory have to "
        "be handed over again where a run goes on; their hash is compared",
        panel=DATA,
        flags=("--task", "-t", "--tasks"),
        typed=TASK_TYPES,
        cli_type=str,
        check=check_task,
        record=in_memory,
    ),
]
Model = Annotated[
    ModelData,
    Option(
        help="Backbone: a packaged alias, a local folder or a hub name.",
        doc="backbone: a packaged alias, a local folder or a hub name; or a pair (model, tokenizer) of "
        "transformers, which is saved to the cache once and left as it is",
        flags=("--model", "-m"),
        typed="str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]",
        cli_type=str,
        check=_check_model,
        record=in_memory,
    ),
]
OtherModel = Annotated[
    str | None,
    Option(help="Where the backbone is now, if it moved.", flags=("--model", "-m")),
]
Text = Annotated[str | None, Option(help="Column that holds the text.", panel=DATA)]
TextPair = Annotated[str | None, Option(help="Column of the second text of a pair.", panel=DATA)]
Label = Annotated[str | None, Option(help="Column that holds the label.", panel=DATA)]
Kind = Annotated[
    str | None,
    Option(
        help="Kind of task (see `autopeft tasks`); default: the metric's, or what the labels look like.",
        panel=DATA,
        check=_check_kind,
    ),
]
LabelWords = Annotated[
    str | Sequence[str] | Mapping[str, str] | None,
    Option(
        help="Classify by a language model's own words, without a head: one word for each class, in the "
        "order of the class names or by name, as in bad,great or negative=bad,positive=great. Each is one "
        "token. A masked language model or a decoder predicts them in the --template.",
        doc="one word for each class, which a masked language model or a decoder predicts in the `template` "
        "in the place of a head's classes: `bad,great` or a list in the order of the class names, "
        "`negative=bad,positive=great` or a mapping from names. Each is one token",
        panel=DATA,
        metavar="WORD,WORD",
        takes="a text, a list of words or a mapping from class names to words",
        cli_type=str,
        check=_check_words,
        spell=words_text,
        record=words_text,
    ),
]
Template = Annotated[
    str | None,
    Option(
        help="What texts are put in for --label-words: '{text} It was {mask} .' for a masked language model "
        "({mask} is where the word comes), '{text} It was' for a decoder, which predicts what comes next. "
        "Pairs have {text} and {text_pair}. Default: these, and for pairs '{text} ? {mask} , {text_pair}' "
        "and '{text} {text_pair} Answer:'.",
        doc="what texts are put in for `label_words`: `{text} It was {mask} .` for a masked language model, "
        "whose mask is where the word comes, and for a decoder a text that ends there; pairs of texts have "
        "`{text}` and `{text_pair}`. Default: one for the backbone, which the run shows",
        panel=DATA,
        check=_check_template,
    ),
]
Metric = Annotated[
    str | MetricFunction | None,
    Option(
        help="Score to maximise, by name or as module:function; default: the task's own.",
        doc="score to maximise: a name, or a function of two lists, predictions and references, whose value "
        "is higher the better; default: the task's own. A run that goes on with a function is given it again",
        panel=DATA,
        typed="str | Callable[[list, list], float] | None",
        takes="a name or a function",
        cli_type=str,
        check=_check_metric,
        read=_metric_named,
        spell=metric_text,
        record=metric_text,
    ),
]
ClassWeights = Annotated[
    Literal["balanced"] | Sequence[float] | None,
    Option(
        help="'balanced', or one weight for each class, separated by commas.",
        doc="'balanced', or one weight for each class",
        panel=DATA,
        takes="'balanced' or a list of numbers",
        cli_type=str,
        read=_weights_of,
        spell=_weights_text,
    ),
]
DropEmpty = Annotated[
    bool,
    Option(
        help="Leave out rows without a text or a label, instead of refusing the data.",
        doc="whether rows without a text or a label are left out; else such data are refused",
        panel=DATA,
        flags=("--drop-empty",),
    ),
]
StandIn = Annotated[
    bool,
    Option(
        help="Fail where the hub does not answer, instead of using the packaged stand-in.",
        doc="whether a packaged task may stand in for one of the hub that cannot be had",
        panel=DATA,
        flags=("--no-stand-in",),
    ),
]
Steps = Annotated[int | None, Option(help="Optimizer steps; default: the effort's.", panel=TRAINING, least=1)]
Seed = Annotated[
    int,
    Option(
        help="Seed of everything that is drawn.",
        doc="seed of everything that is drawn: heads, modules, data order, splits, and a search's sampler",
        panel=TRAINING,
        least=0,
    ),
]
_LENGTH = Option(help="Longest text in tokens.", panel=TRAINING, least=4, show_default=False)
MaxLength = Annotated[int | None, _LENGTH]
MaxTokens = Annotated[int, _LENGTH]
BatchSize = Annotated[
    int, Option(help="Examples for each step.", panel=TRAINING, least=1, show_default=False)
]
MicroBatch = Annotated[
    int | None,
    Option(
        help="Examples at a time; gradients add up to --batch-size.",
        doc="examples at a time; gradients add up to `batch_size`",
        panel=TRAINING,
        least=1,
    ),
]


def rows(split: str) -> Option:
    """The option that limits the rows of a split."""
    return Option(help=f"At most so many rows of {split}; default: the effort's.", panel=DATA, least=1)


_DEVICE = (
    "What computes, as torch names it: cpu, cuda, cuda:1, xpu or mps. auto is the accelerator where there is "
    "one, else the CPU."
)
Device = Annotated[str, Option(help=_DEVICE, panel=TRAINING)]
OtherDevice = Annotated[str, Option(help=_DEVICE, doc=f"{_DEVICE} A live hybrid stays where it is.")]
Precision = Annotated[
    str,
    Option(
        help="Of the backbone's weights: fp32, or bf16, which is rougher and on many machines faster.",
        panel=TRAINING,
        choices=_precisions,
        check=_check_precision,
    ),
]
Quantize = Annotated[
    str | None,
    Option(
        help="Hold the linear maps of the backbone's layers in 8 bits (int8, torchao) or 4 (int4, "
        "bitsandbytes): less memory, and only methods that leave their weights alone.",
        doc="hold the linear maps of the backbone's layers in 8 bits (`int8`, by torchao) or 4 (`int4`, by "
        "bitsandbytes): less memory, and only methods that leave their weights alone, such as LoRA and "
        "adapters; default: as they are",
        panel=TRAINING,
        choices=_quantized,
        check=_check_quantize,
    ),
]
OtherQuantize = Annotated[
    str | None,
    Option(
        help="Hold the backbone's linear maps in 8 or 4 bits: {choices}; default: as in its training.",
        choices=_other_quantized,
        check=_check_other_quantize,
    ),
]
OtherPrecision = Annotated[
    str | None,
    Option(
        help="Of the backbone's weights: {choices}; default: as in its training.",
        choices=_precisions,
        check=_check_precision,
    ),
]
MemorySaving = Annotated[
    bool,
    Option(
        help="Compute the layers' activations again in the backward instead of keeping them (gradient "
        "checkpointing): less memory, more time, the same gradients.",
        doc="whether layers compute their activations again in the backward instead of keeping them "
        "(gradient checkpointing): less memory, more time, the same gradients",
        panel=TRAINING,
        flags=("--memory-saving",),
    ),
]
Shortcuts = Annotated[
    bool,
    Option(
        help="Leave out what need not be computed: layers below everything that a recipe alters are answered "
        "from stored states (fp16), the last layer serves only the positions that are read.",
        cli=False,
    ),
]
LearnAll = Annotated[
    bool,
    Option(
        help="For language models: learn every token of the training rows, prompts too, and not the answers "
        "alone. Scores are those of answers all the same.",
        doc="for language models: every token of the training rows is learnt, prompts too, and not the "
        "answers alone; scores are those of answers all the same",
        panel=TRAINING,
    ),
]
Packing = Annotated[
    bool,
    Option(
        help="For language models: short texts share a row of at most --max-length tokens, and none sees "
        "another. Losses are the same; without most of the shortcuts.",
        doc="for language models: short texts share a row of at most `max_length` tokens, and none sees "
        "another: the same losses in fewer rows, without most of the shortcuts",
        panel=TRAINING,
    ),
]
HeadStart = Annotated[
    str,
    Option(
        help="{choices}: a new head begins fitted to the frozen backbone's features of the training rows (a "
        "linear probe, where held-out rows show that it knows enough), or as the seed draws it.",
        panel=TRAINING,
        choices=partial(_constant, __name__, "HEAD_STARTS"),
    ),
]
Out = Annotated[
    str | Path | None,
    Option(
        help="Folder to write; default: a new one under runs/.",
        doc="folder to write; default: a new one under `runs`",
        flags=("--out", "-o"),
        cli_type=Path,
        repeated=False,
    ),
]
Runs = Annotated[str | Path, Option(help="Folder that holds the runs.", cli=False, repeated=False)]
NotifyFunction = Callable[[str], None] | None
Notify = Annotated[
    NotifyFunction,
    Option(
        help="Takes one line where data are fetched or stand in for others.",
        cli=False,
        repeated=False,
    ),
]
