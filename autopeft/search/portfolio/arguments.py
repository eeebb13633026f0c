"""What `autopeft.recommend` takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from autopeft.arguments import Arguments, Option
from autopeft.errors import UsageError, near
from autopeft.foreign import local_path
from autopeft.search.planning.arguments import BudgetOption, ServeOption
from autopeft.training import options as shared

__all__ = ["RecommendArguments", "RecommendCall"]

_SUFFIXES = (".yaml", ".yml")


def _check_out(value: str | Path) -> None:
    path = local_path(value)
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"A recipe is written as {' or '.join(_SUFFIXES)}, but got out={str(path)!r}.")
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is there already; choose another --out, or remove it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} to.")


def _check_clusters(value: Sequence[str]) -> None:
    from autopeft.tasks import list_tasks

    known = sorted({task.cluster for task in list_tasks() if task.cluster is not None})
    for name in value:
        if name not in known:
            raise UsageError(
                f"There is no cluster {name!r}.{near(str(name), known)} Clusters: {', '.join(known)}."
            )


class RecommendArguments(Arguments):
    """What a recommendation is for."""

    called: ClassVar[str] = "recommend"

    budget: BudgetOption
    model: shared.Model = "minilm"
    task: Annotated[
        shared.TaskData,
        Option(
            help="What it is for: a name (see `autopeft tasks`), a file or a folder. Its rows are looked at, "
            "nothing is trained.",
            doc="what it is for, by name, path, or as rows in memory; its rows are looked at, and nothing is "
            "trained",
            flags=("--task", "-t"),
            typed=f"{shared.TASK_TYPES} | None",
            cli_type=str,
            check=shared.check_task,
            record=shared.in_memory,
        ),
    ] = None
    rows: Annotated[
        int | None,
        Option(help="Rows to train on; default: those of the task, else 2,000.", least=1),
    ] = None
    serve: ServeOption = None
    text: shared.Text = None
    text_pair: shared.TextPair = None
    label: shared.Label = None
    kind: shared.Kind = None
    label_words: shared.LabelWords = None
    template: shared.Template = None
    drop_empty: shared.DropEmpty = False
    stand_in: shared.StandIn = True
    max_length: shared.MaxTokens = 128
    seed: shared.Seed = 0


class RecommendCall(RecommendArguments):
    """What a call of `autopeft.recommend` takes beside them."""

    out: Annotated[
        str | Path | None,
        Option(
            help="File to write the first recipe to: a new .yaml.",
            flags=("--out", "-o"),
            metavar="FILE",
            cli_type=Path,
            check=_check_out,
        ),
    ] = None
    leave_out: Annotated[
        Sequence[str],
        Option(
            help="Clusters of tasks whose trainings are no evidence, beside the task's own.",
            takes="a list of texts",
            check=_check_clusters,
            cli=False,
        ),
    ] = ()
    notify: shared.Notify = None
