"""The contenders of one search: how each is chosen, and its scores with fresh seeds on the search's own rows.

All choose by *select* with the search's seed, as the search does, and are trained with the same fresh seeds
for as many steps, with the head from its probe. The backbone is in bf16 all the while, but where every
weight trains.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cells import CLUSTERS, Cell, earlier, setting
from lib.packaged_without import without_rows
from lib.searches import finished_search
from lib.told import fresh_runs
from lib.worker import run_here

from autopeft import Recipe, recommend
from autopeft.counting import count
from autopeft.graph import build_graph
from autopeft.recipe.pooling import pooled, trained_entries
from autopeft.runs.folder import load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import TrainJob
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare, worker_setup
from autopeft.search.portfolio.templates import FittedRecipe, fitted, templates
from autopeft.search.selection.contender import fresh_seeds

__all__ = ["Run", "Runs"]


@dataclass
class Run:
    """A contender's scores.

    Attributes:
        what: its recipe in words.
        select, test: score of each fresh seed.
        parts: what groups of *test* rows contribute, by seed.
        seconds: of the trainings that chose it, those of the fresh seeds not counted.
        step_time: seconds of a training step, the median over its fresh seeds.
    """

    contender: str
    what: str
    hash: str
    deployed: int
    recipe: Mapping[str, Any] = field(repr=False)
    select: dict[int, float] = field(default_factory=dict)
    test: dict[int, float] = field(default_factory=dict)
    parts: dict[int, Sequence[float]] = field(default_factory=dict, repr=False)
    seconds: float = 0.0
    step_time: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The run as a line; contributions with seven digits."""
        told = asdict(self)
        told["parts"] = {seed: [round(x, 7) for x in values] for seed, values in self.parts.items()}
        return told


class Runs:
    """All that is trained for one search of a cell."""

    def __init__(self, cell: Cell, seed: int, folder: Path) -> None:
        self.cell, self.seed, self._folder = cell, seed, folder
        if earlier(seed):
            without_rows(cell.task, *earlier(seed))
        self.ready: Prepared = prepare(SearchArguments(**setting(cell, seed)))
        self._setup = worker_setup(self.ready)
        self._seeds = fresh_seeds(seed, self.ready.effort.seeds)
        self._known: dict[str, Run] = {}

    def run(self, contender: str) -> Run | None:
        """A contender by its name; `None` where the budget has no such recipe."""
        found = {
            "winner": self._winner,
            "tuned LoRA": lambda: self._baseline("tuned LoRA", "lora"),
            "LoRA as users take it": self._plain,
            "the same, read alike": self._plain_alike,
            "portfolio's first": self._recommended,
            "head alone": lambda: self._baseline("head alone", "head"),
        }[contender]()
        if found is not None and set(found.test) == set(self._seeds):
            self._known.setdefault(found.hash, found)
        return found

    # The search and its baselines
    # ------------------------------------------------------------------------------------------------------

    @cached_property
    def _records(self) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Trials and final runs of the search, which is run, or gone on with, where that is needed."""
        finished_search(self._folder, **setting(self.cell, self.seed), workers=0, fresh_baselines=True)
        run = load_run(self._folder)
        return run.trials().records, run.finals().records

    def _winner(self) -> Run:
        trials, finals = self._records
        result = load_run(self._folder).result()
        recipe = Recipe.from_file(self._folder / "recipe.yaml")
        tests = [r for r in finals if r.kind == "test" and r.state == "complete"]
        confirmed = [r for r in finals if r.kind == "confirm" and r.state == "complete"]
        spent = sum(r.seconds for r in (*trials, *confirmed))
        if not tests:  # LoRA or the head alone is returned: its runs are the baseline's
            found = self._baseline("winner", "lora" if trained_entries(recipe) else "head")
            assert found is not None
            found.seconds = spent
            return found
        own = [r for r in confirmed if r.number == result["number"]]
        return Run(
            "winner",
            recipe.name,
            _hash(recipe, self.ready),
            int(result["counts"]["deployed"]),
            recipe.to_dict(),
            {r.seed: r.scores["select"] for r in own if r.seed is not None},
            {r.seed: r.scores["test"] for r in tests if r.seed is not None},
            {r.seed: r.pseudo_values or () for r in tests if r.seed is not None},
            spent,
            _median([(r.measured or {}).get("step_time") for r in own]),
        )

    def _of_baseline(self, kind: str) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Sweep and fresh runs of a baseline of the search."""
        index = ["lora", "head"].index(kind)
        if kind == "head" and not any("LoRA" in b.name for b in self.ready.baselines()):
            index = 0
        sweep = [r for r in self._records[1] if r.job.startswith(f"baseline-{index}-sweep")]
        return sweep, list(fresh_runs(self._records[1], load_run(self._folder).result(), index))

    def _baseline(self, contender: str, kind: str) -> Run | None:
        sweep, fresh = self._of_baseline(kind)
        good = [r for r in fresh if r.state == "complete"]
        if not good:
            return None
        recipe = Recipe.from_dict(dict(good[0].recipe))
        return Run(
            contender,
            good[0].label.rpartition(",")[0],
            _hash(recipe, self.ready),
            int((good[0].counts or {}).get("deployed", 0)),
            recipe.to_dict(),
            {r.seed: r.scores["select"] for r in good if r.seed is not None},
            {r.seed: r.scores["test"] for r in good if r.seed is not None},
            {r.seed: r.pseudo_values or () for r in good if r.seed is not None},
            sum(r.seconds for r in sweep),
            _median([(r.measured or {}).get("step_time") for r in good]),
        )

    # Others
    # ------------------------------------------------------------------------------------------------------

    def _plain(self) -> Run | None:
        """The largest LoRA on all layers that fits, at its highest usual rate, which was best so far; all of
        its head has one rate."""
        recipe = self._usual()
        return None if recipe is None else self._final("LoRA as users take it", recipe)

    def _usual(self) -> Recipe | None:
        member = self._member("lora", -1)
        if member is None:
            return None
        training = member.recipe.training.without_head_parts()
        return member.recipe.model_copy(update={"training": training})

    def _plain_alike(self) -> Run | None:
        """That LoRA, whose head reads what those of the search do."""
        recipe = self._usual()
        if recipe is None:
            return None
        return self._final("the same, read alike", pooled(recipe, self.ready.space.pooling))

    def _recommended(self) -> Run:
        """What `autopeft recommend` says without a look at the task, and without evidence of its cluster."""
        found = recommend(
            budget=self.cell.budget,
            model=self.cell.model,
            rows=self.cell.rows,
            leave_out=(CLUSTERS[self.cell.task],),
        )
        return self._final("portfolio's first", found.recipe)

    # Parts
    # ------------------------------------------------------------------------------------------------------

    def _member(self, name: str, rate: int) -> FittedRecipe | None:
        found = [
            m for t in templates() if t.name == name for m in fitted(t, self.ready.spec, self.ready.budget)
        ]
        return found[rate] if found else None

    def _final(self, contender: str, recipe: Recipe, seconds: float = 0.0) -> Run:
        key = _hash(recipe, self.ready)
        if key in self._known:  # the same recipe with the same seeds is the same, number for number
            return replace(self._known[key], contender=contender, seconds=seconds)
        jobs = [
            TrainJob(
                f"s{seed}", "baseline", contender, recipe.to_dict(), seed, self.ready.effort.steps,
                splits=("select", "test"), precision=self.ready.arguments.final_precision,
            )
            for seed in self._seeds
        ]  # fmt: skip
        run = Run(
            contender,
            recipe.name,
            key,
            count(recipe, self.ready.spec).deployed,
            recipe.to_dict(),
            seconds=seconds,
        )
        results = run_here(self._setup, *jobs)
        for seed, result in zip(self._seeds, results, strict=True):
            run.select[seed], run.test[seed] = result.scores["select"], result.scores["test"]
            run.parts[seed] = result.pseudo_values
        run.step_time = _median([r.measured.get("step_time") for r in results])
        return run


def _hash(recipe: Recipe, ready: Prepared) -> str:
    return build_graph(recipe, ready.spec).trial_hash()


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
