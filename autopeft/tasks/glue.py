"""GLUE's tasks: their columns, classes and metrics, and how they are read from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.assets import hub_answers
from autopeft.errors import TaskError
from autopeft.tasks.memory import tables_of
from autopeft.tasks.table import Table

__all__ = ["GLUE", "GLUE_REPOSITORY", "GlueTask", "canonical", "glue_available", "read_hub"]

GLUE_REPOSITORY = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task: text columns, default metric, rows of train + validation, kind, its stand-in, and the
    `cluster` of packaged tasks that it shares texts with."""

    name: str
    text: str
    text_pair: str | None
    metric: str
    rows: int
    classes: int
    summary: str
    kind: str = "classification"
    stand_in: str | None = None
    cluster: str | None = None


GLUE: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("cola", "sentence", None, "matthews", 9_594, 2, "grammatical or not"),
        GlueTask(
            "sst2",
            "sentence",
            None,
            "accuracy",
            68_221,
            2,
            "sentiment of movie phrases",
            stand_in="movie-sentences",
            cluster="rotten-tomatoes",
        ),
        GlueTask("mrpc", "sentence1", "sentence2", "f1", 4_076, 2, "paraphrase or not"),
        GlueTask("qqp", "question1", "question2", "f1", 404_276, 2, "same question or not"),
        GlueTask(
            "stsb",
            "sentence1",
            "sentence2",
            "pearson_spearman",
            7_249,
            1,
            "similarity from 0 to 5",
            kind="regression",
        ),
        GlueTask("mnli", "premise", "hypothesis", "accuracy", 402_517, 3, "entailment; test: matched part"),
        GlueTask("qnli", "question", "sentence", "accuracy", 110_206, 2, "does the sentence answer"),
        GlueTask("rte", "sentence1", "sentence2", "accuracy", 2_767, 2, "entailment, small"),
        GlueTask("wnli", "sentence1", "sentence2", "accuracy", 706, 2, "coreference as entailment"),
    )
}


def canonical(name: str) -> str:
    """`glue/SST-2` and the like as GLUE's own short name; other names unchanged."""
    short = name.lower().removeprefix("glue/").replace("-", "").replace("_", "")
    return short if short in GLUE else name


def glue_available(task: GlueTask) -> bool:
    """Whether the hub answers, or this task already lies in the cache of `datasets`."""
    import datasets

    cached = Path(datasets.config.HF_DATASETS_CACHE) / GLUE_REPOSITORY.replace("/", "___") / task.name
    return cached.is_dir() or hub_answers()


def read_hub(repository: str, config: str | None) -> dict[str, Table]:
    """The splits of a data set on the hub.

    Raises:
        TaskError: the hub gave no data.
    """
    import datasets

    name = repository if config is None else f"{repository}:{config}"
    try:
        loaded: Any = datasets.load_dataset(repository, config)
    # datasets and the hub's client raise errors without a common base for what they cannot fetch or read.
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise TaskError(f"The data set {name} cannot be read from the hub: {first}") from error
    return tables_of(loaded, name)
