"""For each kind of task: the rows, the backbone and the search that fits into ten minutes of two cores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from lib.trec_rows import made_of

from autopeft import load_task
from autopeft.tasks import Task

__all__ = ["SETTINGS", "TIME", "Setting"]

Ask = Callable[[Task, Path], Sequence[str]]

TIME = "9m"
"""Of a search, as `--time` takes it."""

_ASKED = 3


@dataclass(frozen=True)
class Setting:
    """The search of a kind of task.

    Attributes:
        task: its name, or what writes a file of rows into a folder and returns its path.
        search: further words of `autopeft search`.
        ask: given the task and a folder, the words of `autopeft predict` that ask about some rows.
        model: a packaged backbone, or `t5` or `vit`: a folder that `run.py` is given.
        trivial: what the winner has to beat: `constant`, the same answer for every row, or `untuned`.
    """

    task: str | Callable[[Path], Path]
    search: tuple[str, ...]
    ask: Ask
    model: str = "minilm"
    trivial: str = "constant"


# Rows
# ---------------------------------------------------------------------------------------------------------


def made(kind: str, folder: Path, *, rows: int | None = None) -> Path:
    """A file of rows of this kind, made of the questions of `trec`: of the first `rows`, or of all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    lines = (json.dumps(row) + "\n" for row in islice(made_of(load_task("trec"), kind), rows))
    path.write_text("".join(lines), encoding="utf-8")
    return path


# Asking
# ---------------------------------------------------------------------------------------------------------


def texts(task: Task, folder: Path) -> list[str]:
    """Some rows of *test*, each text an argument, with its second text where there is one."""
    split = task.splits["test"]
    words = [w for text in split.texts[:_ASKED] for w in ("--text", text)]
    pairs = [w for text in (split.pairs or ())[:_ASKED] for w in ("--text-pair", text)]
    return words + pairs


def rows(task: Task, folder: Path) -> list[str]:
    """The first rows of the task's own file."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:_ASKED]
    path = folder / "asked.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return ["--file", str(path)]


def image(task: Task, folder: Path) -> list[str]:
    """An image of *test* as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "asked.png"
    task.splits["test"].fields["image"][0].pixels().save(path)
    return ["--file", str(path)]


# LoRA's first sweep alone takes half of the nine minutes.
_LANGUAGE = ("--budget", "0.3%", "--steps", "20", "--baselines", "untuned")

SETTINGS: Mapping[str, Setting] = {
    "classification": Setting("trec", ("--budget", "0.5%"), texts),
    "regression": Setting(partial(made, "regression"), ("--budget", "0.5%"), texts),
    "multi_label": Setting(partial(made, "multi_label"), ("--budget", "0.5%"), texts),
    "token_classification": Setting("swapped-words", ("--budget", "1%", "--steps", "240"), texts),
    "question_answering": Setting("inserted-words", ("--budget", "0.5%", "--steps", "120"), texts),
    "image_classification": Setting("mnist-5-to-9", ("--budget", "1%"), image, "vit"),
    "seq2seq": Setting("tatoeba-en-es", ("--budget", "1%"), texts, "t5", "untuned"),
    "causal_lm": Setting(
        "gym:chain_sum", (*_LANGUAGE, "--metric", "likelihood"), texts, "smollm2-135m", "untuned"
    ),
    # Six choices make a row six times as long.
    "multiple_choice": Setting(
        partial(made, "multiple_choice", rows=1_000),
        (*_LANGUAGE, "--batch-size", "4"),
        rows,
        "smollm2-135m",
        "untuned",
    ),
}
