"""What to type next, in commands that work as they stand: with the backbone of the recipe, with a second text
where the hybrid needs one, into a folder that is not there yet, and on another task than before."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from autopeft.training.arguments import TrainArguments

__all__ = ["next_steps", "other_task", "predict_command", "train_command"]

_OTHERS = ("trec", "movie-sentences")


def other_task(task: object) -> str:
    """A task with a name that is not `task`."""
    return next(name for name in _OTHERS if name != task)


def train_command(recipe: str | Path, *, task: object, model: str) -> str:
    """Trains the recipe of a hybrid on another task than `task`, on its own backbone, since another one may
    lack its layers and sites."""
    words = ["autopeft", "train", "--recipe", str(recipe), "--task", other_task(task)]
    if model and model != TrainArguments.model_fields["model"].default:
        words += ["--model", model]
    return shlex.join(words)


def predict_command(hybrid: str | Path, *, pairs: bool, model: str | None = None) -> str:
    """Asks a hybrid of single texts or of pairs; `model` is where its backbone is now, if it moved."""
    second = ' --text-pair "…"' if pairs else ""
    moved = f" --model {shlex.quote(model)}" if model else ""
    return f'autopeft predict {shlex.quote(str(hybrid))} --text "…"{second}{moved}'


def next_steps(run: str, *, task: object, model: str, pairs: bool) -> str:
    """What to type once something has been trained.

    Args:
        run: the run folder as one would type it.
        task, model, pairs: what it was trained on.
    """
    out = next(name for name in _free_names("winner") if not Path(name).exists())
    return "\n".join(
        (
            "Next:",
            "  # recipe, weights, and peft's format where it can be said:",
            f"  autopeft export {shlex.quote(run)} -o {out}",
            "  # the same recipe on another task:",
            f"  {train_command(f'{out}/recipe.yaml', task=task, model=model)}",
            "  # use it:",
            f"  {predict_command(run, pairs=pairs)}",
        )
    )


def _free_names(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1
