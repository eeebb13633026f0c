"""Several tasks by one name: `trec,sms-spam,mine.csv`, or a YAML file that says more of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autopeft.errors import TaskError
from autopeft.foreign import local_path
from autopeft.recipe.yaml_text import read_text, read_yaml
from autopeft.tasks.kinds.mixture import Mixture

__all__ = ["NamedTask", "TasksFile", "named_tasks", "read_tasks"]

_YAML = (".yaml", ".yml")


class NamedTask(BaseModel):
    """A task of several, as the command line or a YAML file names it.

    Attributes:
        task: a name, a file or a folder, as `load_task` takes it.
        name: in the set; default: the task's own.
        weight: its share of the rows that are drawn is multiplied by this.
        text, text_pair, label, kind, metric, class_weights: see `load_task`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    name: str | None = Field(default=None, min_length=1, max_length=100)
    weight: float = Field(default=1.0, gt=0, le=1e6)
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    kind: str | None = None
    metric: str | None = None
    class_weights: str | tuple[float, ...] | None = None

    def options(self) -> dict[str, Any]:
        """What `load_task` is told beside the task's name."""
        return self.model_dump(exclude={"task", "name", "weight"})


class TasksFile(BaseModel):
    """What a YAML file says: tasks, and how their rows are drawn (see `Mixture`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[NamedTask | str, ...] = Field(min_length=1, max_length=100)
    temperature: float = 1.0
    batches: str = "homogeneous"


def named_tasks(name: str) -> tuple[list[NamedTask], Mixture] | None:
    """The tasks that a name means, and how their rows are drawn; `None` where it is one task's name.

    Raises:
        TaskError: a YAML file cannot be read, or says something else.
    """
    parts = _parts(name)
    files = [part for part in parts if _is_yaml(part)]
    if len(parts) < 2 and not files:
        return None
    if len(files) > 1:
        raise TaskError(f"One YAML file says how rows are drawn, but got {', '.join(files)}; join them.")
    said = TasksFile(tasks=tuple(parts))
    if files:
        said = read_tasks(read_text(local_path(files[0], TaskError)), files[0])
    listed = [task for part in parts for task in (said.tasks if part in files else (part,))]
    found = [NamedTask(task=task) if isinstance(task, str) else task for task in listed]
    nested = next((one.task for one in found if _is_yaml(one.task) or len(_parts(one.task)) > 1), None)
    if nested is not None:
        raise TaskError(f"{name} names {nested}, which is several tasks itself; name each of them.")
    weights = tuple(task.weight for task in found)
    mixture = Mixture(
        said.temperature,
        said.batches,  # type: ignore[arg-type]  # checked
        weights if any(weight != 1 for weight in weights) else (),
    )
    return found, mixture


def _parts(name: str) -> list[str]:
    if "," in name and not local_path(name, TaskError).exists():
        return [part.strip() for part in name.split(",") if part.strip()]
    return [name]


def _is_yaml(name: str) -> bool:
    return Path(name).suffix.lower() in _YAML


def read_tasks(text: str, file: str) -> TasksFile:
    """Read the text of a YAML file; `file` names it in messages.

    Raises:
        TaskError: it says something else.
    """
    tree = read_yaml(text, file)
    try:
        return TasksFile.model_validate({"tasks": tree} if isinstance(tree, list) else tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("NamedTask", "str"))
        raise TaskError(
            f"{file}: {where or 'the file'}: {first['msg']}. It is a list of tasks, each a name or task, "
            "name, text, text_pair, label, kind, metric, class_weights and weight; or tasks, temperature "
            "and batches."
        ) from error
