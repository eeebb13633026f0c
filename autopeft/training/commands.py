"""What to type next, in commands that work as they stand: with the backbone of the recipe, with a second text
where the hybrid needs one, into a folder that is not there yet, and on another task than before."""

from __future__ import annotations

import shlex
from pathlib import Path

from autopeft.errors import TaskError
from autopeft.tasks.kinds import TaskKind, get_kind
from autopeft.training.arguments import TrainArguments

__all__ = ["next_steps", "predict_command", "train_command"]

_OTHERS = {"text": ("trec", "movie-sentences"), "vision": ("mnist-5-to-9", "path/to/images")}


def _kind(kind: object) -> TaskKind | None:
    """A kind of task by its name; `None` where it is not known here."""
    try:
        return get_kind(str(kind))
    except TaskError:
        return None


def _members(kind: TaskKind | None) -> tuple[str, ...]:
    """The names of the tasks of a set; none of one task."""
    return tuple(member.name for member in getattr(kind and kind.schema, "members", ()))


def train_command(recipe: str | Path, *, task: object, model: str, kind: object = None) -> str:
    """Trains the recipe of a hybrid on another task than `task`, on its own backbone, since another one may
    lack its layers and sites."""
    known = _kind(kind)
    others = _OTHERS["text" if known is None else known.head.modality]
    other = next((name for name in others if name not in (task, *_members(known))), others[0])
    words = ["autopeft", "train", "--recipe", str(recipe), "--task", other]
    if model and model != TrainArguments.model_fields["model"].default:
        words += ["--model", model]
    return shlex.join(words)


def predict_command(hybrid: str | Path, *, pairs: bool, model: str | None = None, kind: object = None) -> str:
    """Asks a hybrid of single texts, of pairs, of what its kind reads from files, or of the first of several
    tasks; `model` is where its backbone is now, if it moved."""
    moved = f" --model {shlex.quote(model)}" if model else ""
    rows = '--text "…" --text-pair "…"' if pairs else '--text "…"'
    known = _kind(kind)
    members = _members(known)
    if members:  # which of them read pairs is not told here
        rows = f'--task {shlex.quote(members[0])} --text "…"'
    if known is not None and known.schema.asked_file is not None:
        rows = f"--file {known.schema.asked_file}"
    return f"autopeft predict {shlex.quote(str(hybrid))} {rows}{moved}"


def next_steps(run: str, *, task: object, model: str, pairs: bool, kind: object = None) -> str:
    """What to type once something has been trained.

    Args:
        run: the run folder as one would type it.
        task, model, pairs, kind: what it was trained on; the kind of task by its name.
    """
    out, number = "winner", 2
    while Path(out).exists():
        out, number = f"winner-{number}", number + 1
    return "\n".join(
        (
            "Next:",
            "  # recipe, weights, and peft's format where it can be said:",
            f"  autopeft export {shlex.quote(run)} -o {out}",
            "  # the same recipe on another task:",
            f"  {train_command(f'{out}/recipe.yaml', task=task, model=model, kind=kind)}",
            "  # use it:",
            f"  {predict_command(run, pairs=pairs, kind=kind)}",
        )
    )
