"""Recorded trials: recipes of a space inside a budget, trained and scored on *select* at several steps.

A recording is a JSON-lines file, one trained recipe a line, with the space's values that led to it. What
stands in the file is never trained again, and several processes may add to it, each its own part. The first
recipes are drawn at random; the others change a few values of the best so far, so that the region where
searches spend their time is covered too. Some recipes are trained again with other seeds, for the noise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autopeft import Recipe, load_task
from autopeft.assets import dtype_of, load_config, load_tokenizer, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, run_trial
from lib.parts import part_of
from lib.storage import append_row, read_rows

__all__ = ["Recording", "Setting", "Trainer", "at_rate", "front_of", "record"]


@dataclass(frozen=True)
class Setting:
    """What is recorded.

    Attributes:
        space: a built-in space, whose name also seeds the draws.
        space_file: the space as it was recorded, where the built-in one has changed since.
        budget: limit on deployed parameters; `100%` for a space without one.
        learning_rate: replaces the space's own where that cannot train in so few steps.
        every: a score on *select* every so many steps.
        random, mutants: recipes drawn at random, and recipes near the best.
        repeats, seeds: recipes that are trained with so many seeds in all.
        two_objectives: the best are those of the front of size against score, not those of the highest score.
    """

    task: str
    space: str
    budget: str
    rows: Rows
    steps: int
    every: int
    random: int
    mutants: int
    repeats: int = 0
    seeds: int = 3
    learning_rate: float | None = None
    model: str = "minilm"
    precision: str = "fp32"
    max_length: int = 64
    two_objectives: bool = False
    space_file: Path | None = None
    head_start: str = "random"

    def load_space(self) -> Space:
        """The space that is recorded."""
        return Space.load(self.space_file or self.space)


class Trainer:
    """Trains recipes as a setting says."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        source = resolve_model(setting.model, notify=print)
        self.spec: BackboneSpec = spec_of(load_config(source))
        task = load_task(setting.task, rows=setting.rows, notify=print)
        self._data = encode(task, load_tokenizer(source), setting.max_length)
        self._model = task.task_kind.head.load_model(source, task.labels, dtype=dtype_of(setting.precision))
        self._plan = TrainingPlan(
            steps=setting.steps, batch_size=32, max_length=setting.max_length, eval_every=setting.every,
            device="auto", head_start=setting.head_start,
        )  # fmt: skip

    def train(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """`scores` on *select* by step, `cpu_seconds`, the last `loss` and the mean one on *select*, or the
        `error` that ended it."""
        scores: dict[str, float] = {}
        row: dict[str, Any] = {}
        started = time.process_time()
        try:
            outcome = run_trial(
                self._model, recipe, self._data, replace(self._plan, seed=seed),
                on_score=lambda step, score: scores.__setitem__(str(step), score),
            )  # fmt: skip
            row |= {"loss": outcome.train_loss, "select_loss": outcome.losses.get("select")}
        except AutoPEFTError as error:
            row["error"] = str(error)
        return row | {"scores": scores, "cpu_seconds": round(time.process_time() - started, 2)}


class Recording:
    """A file of trained recipes, and how to add to it."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path, self.setting = path, setting
        self.space, self.budget = setting.load_space(), Budget.parse(setting.budget)
        self.rows: list[dict[str, Any]] = read_rows(path)
        self._done = {(row["hash"], row["seed"]) for row in self.rows}
        self._part, self._parts = 0, 1

    def run(self, part: int = 0, parts: int = 1) -> None:
        """Train what is missing, or of every `parts` recipes the one that is this part's; each trial is on
        disk before the next begins."""
        s, self._part, self._parts = self.setting, part, parts
        trainer = Trainer(s)
        for origin, index, values, point, seed in self._missing(trainer.spec):
            row = {
                "hash": point.hash, "seed": seed, "origin": origin,
                "index": index, "values": values, "deployed": point.counts.deployed,
                "share": point.counts.share, "precision": s.precision, "recipe": point.recipe.to_dict(),
            }  # fmt: skip
            self._add(row | trainer.train(point.recipe, seed))

    def _missing(self, spec: BackboneSpec) -> Iterator[tuple[str, int, dict[str, Any], Candidate, int]]:
        """What is still to be trained: (origin, index in it, values, what they stand for, seed)."""
        s, space = self.setting, self.space.bind(spec)
        for origin, wanted in (("random", s.random), ("mutant", s.mutants)):
            for index in range(self._part, wanted, self._parts):
                self._reload()
                if not any(row["origin"] == origin and row["index"] == index for row in self.rows):
                    rng = random.Random(f"{s.space}/{origin}/{index}")
                    yield origin, index, *self._new(rng, origin, space), 0
        while len(first := self._first()) < s.random + s.mutants:
            time.sleep(10.0)  # which recipes are repeated depends on all of them
            self._reload()
        by_score = sorted(first, key=lambda row: -row["scores"][str(s.steps)] if _finished(row, s) else 1.0)
        for index in range(self._part, s.repeats, self._parts):
            # Evenly over the ranks, so that noise is known for good recipes and for bad ones.
            row = by_score[index * (len(by_score) - 1) // max(1, s.repeats - 1)]
            for seed in range(1, s.seeds):
                if (row["hash"], seed) not in self._done:
                    yield "repeat", index, row["values"], self._candidate(space, row["values"]), seed

    def _first(self) -> list[dict[str, Any]]:
        """Every recipe's first training."""
        return [row for row in self.rows if row["seed"] == 0]

    def _reload(self) -> None:
        """Read what other processes have added."""
        self.rows = read_rows(self.path)
        self._done = {(row["hash"], row["seed"]) for row in self.rows}

    def _candidate(self, space: BoundSpace, values: Mapping[str, Any]) -> Candidate:
        return candidate(space, values, self.budget, change=partial(at_rate, rate=self.setting.learning_rate))

    def _new(self, rng: random.Random, origin: str, space: BoundSpace) -> tuple[dict[str, Any], Candidate]:
        """A point that was not trained yet."""
        while True:
            values = space.sample(rng)
            if origin == "mutant":
                parent = rng.choice(self._best())["values"]
                changed = rng.sample(space.parameters, rng.randint(1, 3))
                values = {**parent, **{p.name: p.sample(rng) for p in changed}}
            point = self._candidate(space, values)
            if (point.hash, 0) not in self._done:
                return values, point

    def _best(self) -> list[dict[str, Any]]:
        done = [row for row in self._first() if _finished(row, self.setting)]
        if self.setting.two_objectives:
            return front_of(done, str(self.setting.steps))
        return sorted(done, key=lambda row: -row["scores"][str(self.setting.steps)])[: max(5, len(done) // 8)]

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._done.add((row["hash"], row["seed"]))
        append_row(self.path, row)
        shown = " ".join(f"{step}: {score:.4f}" for step, score in row["scores"].items())
        print(
            f"{len(self.rows):4} {row['origin']:7} {row['deployed']:>9,}  {shown or row.get('error')}",
            flush=True,
        )


def at_rate(recipe: Recipe, rate: float | None) -> Recipe:
    """The recipe at another learning rate; with `None` as it is."""
    if rate is None:
        return recipe
    training = recipe.training.model_copy(update={"learning_rate": rate})
    return recipe.model_copy(update={"training": training})


def front_of(rows: Sequence[Mapping[str, Any]], step: str) -> list[dict[str, Any]]:
    """The rows of which no other is both smaller and better."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["deployed"], -r["scores"][step])):
        if not front or row["scores"][step] > front[-1]["scores"][step]:
            front.append(dict(row))
    return front


def _finished(row: Mapping[str, Any], setting: Setting) -> bool:
    return str(setting.steps) in row["scores"]


def record(path: Path, setting: Setting, part: str = "0/1") -> None:
    """Train the recipes that a recording lacks, on one thread; with `K/N` every N-th of them, from the K-th
    on."""
    torch.set_num_threads(1)
    Recording(path, setting).run(*part_of(part))
