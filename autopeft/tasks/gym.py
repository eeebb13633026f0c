"""Procedural tasks of the package reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760; Apache-2.0) as
prompts and answers: `gym:chain_sum`, `gym:chain_sum?min_terms=2&max_terms=2`.

Rows are made anew for each task from its seed. Each split has generator seeds of its own, and no prompt
stands in two splits (see `gym_rows.draw`).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft.errors import DataError, TaskError, near
from autopeft.spec import BackboneSpec
from autopeft.tasks import gym_rows
from autopeft.tasks.kinds import TaskKind, kind_on
from autopeft.tasks.split import Rows
from autopeft.tasks.table import ColumnNames, RawRows, Table

__all__ = ["GYM", "GymTask", "gym_kind", "parse_gym", "read_gym"]

GYM = "gym:"
_ROWS = {"train": 8_000, "select": 1_000, "test": 1_000}
_MOST_ROWS = 100_000
_LARGEST = 1_000_000
_LONGEST, _MOST_PARAMETERS = 500, 20
_SECONDS = 300.0
_FEWEST = 10
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?(\d{1,7}(\.\d{1,9})?|\.\d{1,9})(e-?\d{1,2})?", re.IGNORECASE)
_INSTALL = "pip install 'autopeft[gym]'"
_START = "import sys; sys.path.pop(0); import runpy; runpy.run_path({!r}, run_name='__main__')"


@dataclass(frozen=True)
class GymTask:
    """A generator and what is set of it, as texts."""

    generator: str
    parameters: Mapping[str, str]

    @property
    def name(self) -> str:
        """The task's name with the parameters in order: two that mean the same are equal."""
        told = "&".join(f"{key}={value}" for key, value in sorted(self.parameters.items()))
        return f"{GYM}{self.generator}" + (f"?{told}" if told else "")


def parse_gym(name: str) -> GymTask:
    """Read a name; whether there is such a generator is not known yet.

    Raises:
        TaskError: it is none, or a value is neither true, false nor a number up to 1,000,000.
    """
    if len(name) > _LONGEST:
        raise TaskError(f"A task's name has up to {_LONGEST} letters, but {name!r:.60}… has {len(name):,}.")
    generator, asked, rest = name.removeprefix(GYM).partition("?")
    if _WORD.fullmatch(generator) is None or (asked and not rest):
        raise TaskError(
            f"{name!r} names no procedural task; write gym:chain_sum or "
            "gym:chain_sum?min_terms=2&max_terms=3."
        )
    parameters: dict[str, str] = {}
    for part in rest.split("&") if rest else ():
        key, equals, value = part.partition("=")
        if not equals or _WORD.fullmatch(key) is None or key in parameters:
            raise TaskError(f"{name!r}: {part!r} is no parameter, or stands there twice; write min_terms=2.")
        truth = value.lower() in ("true", "false")
        if not truth and (_NUMBER.fullmatch(value) is None or math.fabs(float(value)) > _LARGEST):
            raise TaskError(
                f"{name!r}: {key} is {value!r:.60}, but parameters are true, false or numbers up to "
                f"{_LARGEST:,}."
            )
        parameters[key] = value.lower() if truth else value
    if len(parameters) > _MOST_PARAMETERS:
        raise TaskError(f"{name!r:.60}… sets {len(parameters)} parameters; up to {_MOST_PARAMETERS} can be.")
    if fixed := {"seed", "size"} & parameters.keys():
        raise TaskError(
            f"{name!r} sets {' and '.join(sorted(fixed))}: the seed is the task's own (--seed), and how "
            "many rows are made follows from --effort or, in a search, --train-rows, --select-rows and "
            "--test-rows."
        )
    return GymTask(generator, parameters)


def read_gym(task: GymTask, kind: TaskKind, seed: int, made: Rows | None) -> tuple[dict[str, RawRows], str]:
    """Rows of train, validation and test, and the version of reasoning-gym that made them.

    Each row has the field `generator`: seed and index, by which reasoning-gym makes it again with all that
    it knows of it.

    Args:
        kind: that takes prompts and answers.
        made: rows of each split; `None` for 8,000, 1,000 and 1,000. Fewer rows are the first of more.

    Raises:
        TaskError: reasoning-gym is not installed, it has no such generator or parameter, or too many rows are
            wanted.
        DataError: the generator fails, takes more than 300 s, or has too few different prompts.
    """
    try:
        version = importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError as error:
        raise TaskError(
            f"Tasks called gym:… are made by the package reasoning-gym, which is not installed: {_INSTALL}."
        ) from error
    asked = vars(made or Rows())
    wanted = {name: asked[name] or rows for name, rows in _ROWS.items()}
    if max(wanted.values()) > _MOST_ROWS:
        raise TaskError(
            f"Up to {_MOST_ROWS:,} rows of a split are made, but {max(wanted.values()):,} are wanted."
        )
    found = _made(task, {"seed": seed, "wanted": wanted})
    counts = {name: len(rows) for name, rows in found.items()}
    if min(counts.values()) < 1 or sum(counts.values()) < _FEWEST:
        told = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise DataError(
            f"{task.name} has too few different prompts to be split ({told}); widen its parameters."
        )
    names = {"train": "train", "select": "validation", "test": "test"}
    raws = {}
    for name, given in names.items():
        rows = found[name]
        table = _table(task, rows)
        raw = kind.schema.read(table, kind.schema.columns(table, ColumnNames()))
        raws[given] = replace(raw, fields={**raw.fields, "generator": [[row[0], row[1]] for row in rows]})
    return raws, version


def gym_kind(task: GymTask, kind: TaskKind, backbone: BackboneSpec | None) -> TaskKind:
    """The kind that takes prompts and answers, or the one that learns the same on this backbone."""
    return kind_on(backbone, kind, {"train": _table(task, [[0, 0, "?", "!"]])}, ColumnNames())


def _table(task: GymTask, rows: list[list[Any]]) -> Table:
    columns = {"prompt": [row[2] for row in rows], "completion": [row[3] for row in rows]}
    return Table(task.name, columns, {})


def _made(task: GymTask, asked: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """What the process of `gym_rows.py` makes."""
    told = json.dumps({"name": task.generator, "parameters": dict(task.parameters), **asked})
    places = os.pathsep.join(path for path in sys.path if path)
    # Where Python looks for modules is as here, and never in the folder that the user happens to be in.
    variables = {**os.environ, "PYTHONPATH": places, "PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}
    command = [sys.executable, "-W", "ignore", "-c", _START.format(str(Path(gym_rows.__file__)))]
    try:
        done = subprocess.run(
            command, input=told, capture_output=True, text=True, timeout=_SECONDS, check=False, env=variables,
            encoding="utf-8",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{task.name} took more than {_SECONDS:.0f} s to make its rows, and was stopped; choose smaller "
            "parameters or, in a search, fewer rows (--train-rows, --select-rows, --test-rows)."
        ) from error
    try:
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        answer = {}
    if "refused" in answer:
        raise _refusal(task, answer["refused"])
    if "rows" not in answer:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DataError(f"reasoning-gym could not make the rows of {task.name}: {said:.300}")
    return dict(answer["rows"])


def _refusal(task: GymTask, said: Mapping[str, Any]) -> TaskError | DataError:
    """The error for what the process would not make."""
    name = task.generator
    if "unknown" in said:
        names = said["names"]
        return TaskError(
            f"reasoning-gym has no task {name!r} among its {len(names)}.{near(name, names)} They are "
            f"{', '.join(names)}."
        )
    if "value" in said:
        wants = {"int": "a whole number", "float": "a number", "bool": "true or false"}[said["kind"]]
        return TaskError(f"{task.name}: {said['parameter']} is {wants}, but got {said['value']!r}.")
    if "parameter" in said:
        key, names = said["parameter"], said["names"]
        why = "is neither a number nor true or false, and cannot be set" if said["there"] else "is unknown"
        can = f"can be set: {', '.join(names)}" if names else "has nothing that can be set"
        return TaskError(f"{task.name}: {key!r} {why}.{near(key, names)} Of {name} {can}.")
    if "configuration" in said:
        return TaskError(f"reasoning-gym refuses the parameters of {task.name}: {said['configuration']}")
    return DataError(f"{task.name} fails to make row {said['row'] + 1}: {said['why']}.")
