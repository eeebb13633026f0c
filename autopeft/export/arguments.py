"""What `autopeft.evaluate`, `autopeft.predict` and `autopeft.export` take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from autopeft.arguments import Arguments, Option
from autopeft.training import options as shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase | None
else:  # it takes seconds to import
    Tokenizer = Any | None

__all__ = [
    "FORMAT_NAMES",
    "RANKED",
    "WRITES",
    "ChatArguments",
    "EvaluateArguments",
    "ExportArguments",
    "PredictArguments",
]

_TOKENIZER = Option(
    help="Of a live `Hybrid`; default: that of the folder or hub name that its model was loaded from. Of one "
    "that classifies images its image processor.",
    typed="PreTrainedTokenizerBase | BaseImageProcessor | None",
    cli=False,
)
_LENGTH = Option(help="Longest text in tokens, for a live `Hybrid`; default: 128.", cli=False, least=4)
WRITING = "Answers of language models"
WRITES = ("max_new_tokens", "temperature", "top_p", "seed", "beams")
"""Options of how answers are written (see `autopeft.tasks.kinds.Generation`)."""
Told = Callable[[str], None] | None
_BATCH = Option(help="Rows at once.", cli=False, least=1)
TaskToScore = Annotated[
    shared.TaskData,
    Option(
        help="Task to score on; default: the one it was trained on.",
        doc="task to score on, by name, path, or as rows in memory; default: the one it was trained on",
        flags=("--task", "-t"),
        typed=f"{shared.TASK_TYPES} | None",
        cli_type=str,
        check=shared.check_task,
        record=shared.in_memory,
    ),
]


def _check_out(value: str | Path) -> None:
    from autopeft.export.out_file import check_out

    check_out(value)


AnswersFile = Annotated[
    str | Path | None,
    Option(
        help="File to write the answers to, row for row: .csv or .jsonl.",
        flags=("--out", "-o"),
        metavar="FILE",
        cli_type=Path,
        check=_check_out,
    ),
]


FORMAT_NAMES = ("autopeft", "peft", "merged", "diff", "lora", "gguf-lora", "recipe")
RANKED = ("lora", "gguf-lora")
"""The formats that `rank` is for."""


def _formats() -> tuple[str, ...]:
    return FORMAT_NAMES


MaxNewTokens = Annotated[
    int | None,
    Option(
        help="Most tokens of an answer; default: those of the longest answer that it was trained on.",
        doc="for language models: most tokens of an answer; default: those of the longest answer that the "
        "hybrid was trained on",
        least=1,
        panel=WRITING,
    ),
]
Temperature = Annotated[
    float | None,
    Option(
        help="Draw the tokens of answers, the more evenly the higher; default: 0, the most probable token.",
        doc="for language models: tokens of answers are drawn, the more evenly the higher; default: 0, which "
        "takes the most probable one",
        least=0,
        panel=WRITING,
    ),
]
TopP = Annotated[
    float | None,
    Option(
        help="Draw among the most probable tokens that have this probability together; default: 1, all.",
        doc="for language models with a temperature: tokens are drawn among the most probable ones that have "
        "this probability together; default: 1",
        least=0,
        panel=WRITING,
    ),
]
DrawSeed = Annotated[
    int | None,
    Option(
        help="Seed of what is drawn; default: 0.",
        doc="for language models with a temperature: seed of what is drawn; default: 0",
        least=0,
        panel=WRITING,
    ),
]


Beams = Annotated[
    int | None,
    Option(
        help="Follow so many texts side by side and take the most probable; default: 1, token by token.",
        doc="for language models: texts that are followed side by side, of which the most probable is taken; "
        "default: 1, which takes the most probable token each time",
        least=1,
        panel=WRITING,
    ),
]


class EvaluateArguments(Arguments):
    """What a trained hybrid is scored on."""

    called: ClassVar[str] = "evaluate"

    task: TaskToScore = None
    split: Annotated[
        Literal["train", "select", "test", "all"] | None,
        Option(
            help="Which rows; default: test, or all of a file without splits that it was not trained on.",
            doc="which rows; default: `test`, or `all` where a file or table that comes without splits is "
            "not what the hybrid was trained on. Such data are cut as for training where a split or a seed "
            "is named, so that `test` is a tenth; `all` takes every row, also those that it may have been "
            "trained on",
        ),
    ] = None
    seed: Annotated[int | None, Option(help="Seed of the splits; default: the training run's.", least=0)] = (
        None
    )
    metric: shared.Metric = None
    text: shared.Text = None
    text_pair: shared.TextPair = None
    label: shared.Label = None
    drop_empty: shared.DropEmpty = False
    stand_in: shared.StandIn = True
    model: shared.OtherModel = None
    quantize: shared.OtherQuantize = None
    precision: shared.OtherPrecision = None
    device: shared.OtherDevice = "auto"
    tokenizer: Annotated[Tokenizer, _TOKENIZER] = None
    max_length: Annotated[int | None, _LENGTH] = None
    batch_size: Annotated[int, _BATCH] = 64
    notify: shared.Notify = None


OfTask = Annotated[
    str | None,
    Option(
        help="Of a hybrid of several tasks: the one that is meant, by its name.",
        flags=("--task",),
        metavar="TASK",
    ),
]


class PredictArguments(Arguments):
    """How a trained hybrid is asked."""

    called: ClassVar[str] = "predict"

    task: OfTask = None
    text_pair: Annotated[
        Sequence[str] | None,
        Option(
            help="The second text of each --text, for tasks of pairs.",
            doc="the second text of each, for tasks of pairs",
            takes="a list of texts",
        ),
    ] = None
    text_column: Annotated[
        str | None,
        Option(
            help="Column of a table that holds the text; default: the one of training, or an obvious name."
        ),
    ] = None
    text_pair_column: Annotated[
        str | None, Option(help="Column of a table that holds the second text of a pair.")
    ] = None
    max_new_tokens: MaxNewTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    seed: DrawSeed = None
    beams: Beams = None
    told: Annotated[
        Told,
        Option(
            help="Is given a language model's answer to a single text piece by piece, as it is written.",
            cli=False,
            typed="Callable[[str], None] | None",
        ),
    ] = None
    out: AnswersFile = None
    model: shared.OtherModel = None
    quantize: shared.OtherQuantize = None
    precision: shared.OtherPrecision = None
    device: shared.OtherDevice = "auto"
    tokenizer: Annotated[Tokenizer, _TOKENIZER] = None
    max_length: Annotated[int | None, _LENGTH] = None
    batch_size: Annotated[int, _BATCH] = 64
    notify: shared.Notify = None


class ChatArguments(Arguments):
    """How one talks with a trained language model."""

    called: ClassVar[str] = "chat"

    task: OfTask = None
    system: Annotated[str | None, Option(help="What the model is told before all else.")] = None
    max_new_tokens: MaxNewTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    seed: DrawSeed = None
    beams: Beams = None
    max_length: Annotated[
        int | None,
        Option(
            help="Tokens of the conversation that the model reads at most; default: those of its training.",
            least=4,
        ),
    ] = None
    model: shared.OtherModel = None
    quantize: shared.OtherQuantize = None
    precision: shared.OtherPrecision = None
    device: shared.OtherDevice = "auto"
    tokenizer: Annotated[Tokenizer, _TOKENIZER] = None
    notify: shared.Notify = None


class ExportArguments(Arguments):
    """How a trained hybrid is exported."""

    called: ClassVar[str] = "export"

    task: OfTask = None
    format: Annotated[
        str | None,
        Option(
            help="What else is written, in a folder of that name: {choices}. merged is the whole model with "
            "the hybrid in its weights, diff the entries that change, lora a LoRA of it (exact, or near it "
            "at a cost that is measured), gguf-lora that for llama.cpp, recipe what data have settled, as "
            "plain methods with which a search can begin, autopeft nothing else. Default: peft where it can "
            "be said.",
            doc="what is written beside recipe and weights, in a folder of its name: {choices}. `peft` is "
            "the adapter in the words of Hugging Face peft, `merged` the whole model with the hybrid in its "
            "weights, `diff` the entries of the backbone that change, `lora` a LoRA of it, exact or near it "
            "at a cost that is measured, `gguf-lora` that for llama.cpp, `recipe` what data have settled, "
            "ranks and places, as plain methods with which a search can begin, `autopeft` nothing else; "
            "default: `peft` where it can be said",
            flags=("--as",),
            choices=_formats,
        ),
    ] = None
    rank: Annotated[
        int | None,
        Option(
            help="Largest rank of the LoRA of --as lora or gguf-lora. Default: what it takes to be exact, "
            "else the smallest that costs little.",
            doc="largest rank of the LoRA of `lora` or `gguf-lora`; default: what it takes to be exact, else "
            "the smallest that costs less than 1 % of the loss",
            least=1,
        ),
    ] = None
    model: shared.OtherModel = None
    device: shared.OtherDevice = "auto"
    notify: shared.Notify = None
