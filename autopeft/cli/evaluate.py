"""`autopeft evaluate`: the score of a trained hybrid on a task."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from autopeft.cli.console import notify, say_json, say_sheet
from autopeft.cli.options import Json, Label, Metric, NoStandIn, OtherModel, Run, Text, TextPair

__all__ = ["SplitChoice", "evaluate"]


class SplitChoice(str, Enum):
    """Which rows are scored."""

    train = "train"
    select = "select"
    test = "test"


def evaluate(
    run: Run,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="Task to score on; default: the one it was trained on.", show_default=False
        ),
    ] = None,
    split: Annotated[SplitChoice, typer.Option("--split", help="Which rows.")] = SplitChoice.test,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, help="Seed of the splits; default: the training run's.", show_default=False
        ),
    ] = None,
    metric: Metric = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    no_stand_in: NoStandIn = False,
    model: OtherModel = None,
    as_json: Json = False,
) -> None:
    """Score a trained hybrid on a split of a task.

    \b
      autopeft evaluate latest
      autopeft evaluate winner --task new-reviews.csv --label stars
      autopeft evaluate my-run --split select --metric macro_f1 --json
    """
    from autopeft.cli.saved import task_of
    from autopeft.export.package import find_saved, load_saved
    from autopeft.report.train import evaluation_sheet
    from autopeft.tasks.encode import encode
    from autopeft.training import evaluate as score_split

    saved = find_saved(run)
    columns = {"text": text, "text_pair": text_pair, "label": label}
    loaded = task_of(saved, task, columns, metric=metric, seed=seed, stand_in=not no_stand_in, notify=notify)
    hybrid, tokenizer = load_saved(saved, model=model, notify=notify)
    rows = encode(loaded, tokenizer, saved.card.max_length).splits[split.value]
    value = score_split(hybrid.model, rows, loaded.metric, batch_size=64)
    if as_json:
        say_json(
            {
                "run": str(saved.folder),
                "task": loaded.name,
                "split": split.value,
                "rows": len(rows),
                "metric": loaded.metric,
                "score": value,
                "notice": loaded.source.notice,
            }
        )
    else:
        say_sheet(evaluation_sheet(saved.folder.name, loaded.metric, value, len(rows), split.value, loaded))
