"""`autopeft train`: a fixed recipe on a task."""

from __future__ import annotations

import sys

from autopeft.cli.console import notify, say, say_json, say_sheet
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Json
from autopeft.training.arguments import TrainArguments

__all__ = ["train"]


@declared(TrainArguments)
def train(given: Given, as_json: Json = False) -> None:
    """Train a fixed recipe on a task, score it on the test split, and keep it in a run folder.

    \b
      autopeft train --recipe mam --task trec
      autopeft train --recipe winner/recipe.yaml --task reviews.csv --label stars
      autopeft train --recipe lora.yaml --task sst2 --steps 300 --seed 3 -o my-run
    """
    from autopeft.assets import quiet_libraries
    from autopeft.cli.train_progress import watch_training
    from autopeft.report.train import kept_text, train_sheet
    from autopeft.runs.folder import RunFolder, as_typed
    from autopeft.training.commands import next_steps
    from autopeft.training.fixed import train as train_recipe

    quiet_libraries()
    # The result alone goes to stdout.
    with watch_training(live=sys.stderr.isatty(), stream=sys.stderr) as reporter:
        outcome = train_recipe(notify=notify, reporter=reporter, **given)
    if as_json:
        say_json(outcome.to_dict())
        return
    say_sheet(train_sheet(outcome.to_dict(), outcome.task, outcome.summary))
    say(kept_text(str(outcome.folder)))
    say()
    pairs = outcome.task.splits["train"].pairs is not None
    model = str(RunFolder(outcome.folder).manifest()["model"])
    told = {"task": outcome.task.name, "model": model, "kind": outcome.task.kind}
    say(next_steps(as_typed(outcome.folder), pairs=pairs, **told))
