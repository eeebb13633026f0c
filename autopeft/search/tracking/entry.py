"""A trial as trackers show it: its name, its hyperparameters and its figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.recipe import Recipe
from autopeft.recipe.core import EntryRef
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job

__all__ = ["TrackedRun", "Value", "entry_config", "entry_name", "hyperparameters", "metrics_of"]

Value = str | int | float | bool


@dataclass(frozen=True)
class TrackedRun:
    """A trial or a run after the search, as trackers show it.

    Attributes:
        name: unique in a search; letters, digits, `.`, `_` and `-` alone: `trial-3`.
        config: hyperparameters, the same whenever the entry is made.
    """

    name: str
    config: Mapping[str, Value] = field(repr=False)


def entry_name(of: Job | TrialRecord) -> str:
    """Its label with its kind: `trial-3`, `confirm-finalist-3-seed-1000`, `test-of-finalist-3-seed-1000`."""
    label = of.label if of.label.startswith(of.kind) else f"{of.kind} {of.label}"
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-")


def entry_config(of: Job | TrialRecord) -> dict[str, Value]:
    """Kind, seed and hyperparameters, alike for a job and for its record."""
    found: dict[str, Value] = {"kind": of.kind}
    if of.seed is not None:
        found["seed"] = of.seed
    if isinstance(of, TrialRecord) and of.kept:
        found["kept"] = True
    return found | hyperparameters(of.recipe)


def hyperparameters(recipe: Mapping[str, Any]) -> dict[str, Value]:
    """A recipe as flat values: of each entry where it stands and what is set, and the training's settings.

    Example:
        >>> hyperparameters({"layers": [{"at": [0, 1], "attach": [{"lora": {"rank": 4}}]}]})
        {'learning_rate': 0.001, 'lora.at': '0,1', 'lora.rank': 4}
    """
    read = Recipe.from_dict(dict(recipe))
    training = read.training.to_data()
    training.setdefault("learning_rate", read.training.learning_rate)
    found = dict(_flat(training))
    for ref in read.entries():
        found |= dict(_flat({**_place(read, ref), **ref.item.config}, f"{ref.name}."))
    return found


def _place(recipe: Recipe, ref: EntryRef) -> dict[str, Any]:
    """Where an entry stands: its layers (`model` for none), and the compositions around it."""
    if ref.block is None:
        items, place = recipe.model, {"at": "model"}
    else:
        block = recipe.layers[ref.block]
        items, place = block.attach, {k: v for k, v in block.to_data().items() if k != "attach"}
    around = []
    for position in ref.path[:-1]:
        item: Any = items[position]
        around.append(item.kind)
        items = item.children
    return {**place, "in": around} if around else place


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Leaves by their path; a list of plain values is a leaf, the text of its values."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}{key}.")
    elif isinstance(tree, (list, tuple)) and any(isinstance(value, Mapping) for value in tree):
        for value in tree:
            yield from _flat(value, prefix)
    elif isinstance(tree, (list, tuple)):
        yield prefix[:-1], ",".join(map(str, tree))
    elif tree is not None:
        yield prefix[:-1], tree


def metrics_of(record: TrialRecord) -> dict[str, float]:
    """Figures of a record; `score` is of full runs, what paused or was stopped has a `rung_score` alone.
    Where they are of another metric than the task's, its name stands in front: they are not compared."""
    counts, before = record.counts or {}, "" if record.metric is None else f"{record.metric}_"
    named: dict[str, Any] = {
        f"{before}rung_score": record.rungs.get(str(record.steps)),
        f"{before}score": record.score,
        **{f"{split}_score": score for split, score in record.scores.items() if split != "select"},
        "deployed": counts.get("deployed"),
        "share": counts.get("share"),
        "seconds": record.seconds,
        "train_loss": record.train_loss,
        "duplicate_of": record.duplicate_of,
    }
    return {k: float(v) for k, v in named.items() if v is not None and math.isfinite(v)}
