"""`autopeft train`: a fixed recipe on a task."""

from __future__ import annotations

from typing import Annotated

import typer

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.options import (
    BatchSize,
    ClassWeights,
    Json,
    Kind,
    Label,
    MaxLength,
    Metric,
    MicroBatch,
    Model,
    NoStandIn,
    Out,
    Precision,
    Recipe,
    Seed,
    Shortcuts,
    Steps,
    Task,
    Text,
    TextPair,
    class_weights_of,
)

__all__ = ["train"]


def train(
    recipe: Recipe,
    task: Task,
    model: Model = "minilm",
    effort: Annotated[
        str, typer.Option("--effort", help="quick, normal or thorough: how many rows and steps.")
    ] = "normal",
    steps: Steps = None,
    seed: Seed = 0,
    max_length: MaxLength = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    precision: Precision = "fp32",
    shortcuts: Shortcuts = True,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    kind: Kind = None,
    metric: Metric = None,
    class_weights: ClassWeights = None,
    no_stand_in: NoStandIn = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train a fixed recipe on a task, score it on the test split, and keep it in a run folder.

    \b
      autopeft train --recipe mam --task trec
      autopeft train --recipe winner/recipe.yaml --task reviews.csv --label stars
      autopeft train --recipe lora.yaml --task sst2 --steps 300 --seed 3 -o my-run
    """
    from autopeft.cli.fixed import FixedRun, run_fixed
    from autopeft.report.train import next_steps, train_sheet

    run = FixedRun(
        recipe=recipe,
        task=task,
        model=model,
        effort=effort,
        steps=steps,
        seed=seed,
        max_length=max_length,
        batch_size=batch_size or 32,
        micro_batch=micro_batch,
        precision=precision,
        shortcuts=shortcuts,
        columns={"text": text, "text_pair": text_pair, "label": label},
        kind=kind,
        metric=metric,
        class_weights=class_weights_of(class_weights),
        stand_in=not no_stand_in,
        out=out,
    )
    outcome = run_fixed(run, notify, quiet=as_json)
    if as_json:
        say_json(outcome.to_dict())
        return
    say_sheet(train_sheet(outcome.to_dict(), outcome.task))
    say()
    say(next_steps(str(outcome.folder)))
