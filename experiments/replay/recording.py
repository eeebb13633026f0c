"""Recorded trials: recipes of a space inside a budget, trained and scored on *select* at several steps.

A recording is a JSON-lines file, one trained recipe a line, with the space's values that led to it. It is
resumed by recipe hash and seed: what stands in the file is never trained again. The first recipes are drawn
at random; the others change a few values of the best so far, so that the region where searches spend their
time is covered too. Some recipes are trained again with other seeds, for the noise.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft import Recipe, load_task
from autopeft.assets import dtype_of, load_config, load_model, load_tokenizer, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.search.repair import Repaired, repair
from autopeft.search.space import Space
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, run_trial

__all__ = ["Recording", "Setting", "front_of"]


@dataclass(frozen=True)
class Setting:
    """What is recorded.

    Attributes:
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


class Recording:
    """A file of trained recipes, and how to add to it."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path, self.setting = path, setting
        self.space, self.budget = Space.named(setting.space), Budget.parse(setting.budget)
        self.rows: list[dict[str, Any]] = _read(path)
        self._done = {(row["hash"], row["seed"]) for row in self.rows}

    def run(self) -> None:
        """Train what is missing; each trial is on disk before the next begins."""
        s = self.setting
        source = resolve_model(s.model, notify=print)
        spec = spec_of(load_config(source))
        task = load_task(s.task, rows=s.rows, notify=print)
        data = encode(task, load_tokenizer(source), s.max_length)
        model = load_model(source, task.kind, task.num_labels, dtype=dtype_of(s.precision))
        plan = TrainingPlan(
            steps=s.steps, batch_size=32, max_length=s.max_length, eval_every=s.every, device="auto"
        )
        for origin, values, point, seed in self._missing(spec):
            recipe = self.recipe_of(point.recipe)
            scores: dict[str, float] = {}
            row = {
                "hash": build_graph(recipe, spec).trial_hash(), "seed": seed, "origin": origin,
                "values": values, "deployed": point.counts.deployed, "share": point.counts.share,
                "recipe": recipe.to_dict(),
            }  # fmt: skip
            started = time.process_time()
            try:
                outcome = run_trial(
                    model, recipe, data, replace(plan, seed=seed),
                    on_score=lambda step, score, kept=scores: kept.__setitem__(str(step), score),
                )  # fmt: skip
                row["loss"] = outcome.train_loss
            except AutoPEFTError as error:
                row["error"] = str(error)
            row.update(scores=scores, cpu_seconds=round(time.process_time() - started, 2))
            self._add(row)

    def recipe_of(self, recipe: Recipe) -> Recipe:
        """The recipe as it is trained here: at the setting's learning rate, where it has one."""
        rate = self.setting.learning_rate
        if rate is None:
            return recipe
        return recipe.model_copy(
            update={"training": recipe.training.model_copy(update={"learning_rate": rate})}
        )

    def _missing(self, spec: BackboneSpec) -> Iterator[tuple[str, dict[str, Any], Repaired, int]]:
        """What is still to be trained: (origin, values, repaired point, seed)."""
        s = self.setting
        for origin, wanted in (("random", s.random), ("mutant", s.mutants)):
            while (have := sum(row["origin"] == origin for row in self.rows)) < wanted:
                rng = random.Random(f"{s.space}/{origin}/{have}")
                yield origin, *self._new(rng, origin, spec), 0
        first = [row for row in self.rows if row["seed"] == 0 and row["scores"]]
        by_score = sorted(first, key=lambda row: -row["scores"][str(s.steps)] if _finished(row, s) else 1.0)
        for i in range(s.repeats):
            # Evenly over the ranks, so that noise is known for good recipes and for bad ones.
            row = by_score[i * (len(by_score) - 1) // max(1, s.repeats - 1)]
            for seed in range(1, s.seeds):
                if (row["hash"], seed) not in self._done:
                    yield "repeat", row["values"], repair(self.space, row["values"], self.budget, spec), seed

    def _new(self, rng: random.Random, origin: str, spec: BackboneSpec) -> tuple[dict[str, Any], Repaired]:
        """A point that was not trained yet."""
        parameters = self.space.bind(spec).parameters
        while True:
            values = self.space.sample(rng, spec)
            if origin == "mutant":
                parent = rng.choice(self._best())["values"]
                changed = rng.sample(parameters, rng.randint(1, 3))
                values = {**parent, **{p.name: p.sample(rng) for p in changed}}
            point = repair(self.space, values, self.budget, spec)
            if (build_graph(self.recipe_of(point.recipe), spec).trial_hash(), 0) not in self._done:
                return values, point

    def _best(self) -> list[dict[str, Any]]:
        done = [row for row in self.rows if row["seed"] == 0 and _finished(row, self.setting)]
        if self.setting.two_objectives:
            return front_of(done, str(self.setting.steps))
        return sorted(done, key=lambda row: -row["scores"][str(self.setting.steps)])[: max(5, len(done) // 8)]

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._done.add((row["hash"], row["seed"]))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = " ".join(f"{step}: {score:.4f}" for step, score in row["scores"].items())
        print(
            f"{len(self.rows):4} {row['origin']:7} {row['deployed']:>9,}  {shown or row.get('error')}",
            flush=True,
        )


def front_of(rows: Sequence[Mapping[str, Any]], step: str) -> list[dict[str, Any]]:
    """The rows of which no other is both smaller and better."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["deployed"], -r["scores"][step])):
        if not front or row["scores"][step] > front[-1]["scores"][step]:
            front.append(dict(row))
    return front


def _finished(row: Mapping[str, Any], setting: Setting) -> bool:
    return str(setting.steps) in row["scores"]


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a recording; a line that was cut off is dropped from the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]
