"""The contenders of one search: how each is chosen, and its scores with fresh seeds on the search's own rows.

All choose by *select* with the search's seed, as the search does, and are trained with the same fresh seeds
for as many steps, with the head from its probe. The backbone is in bf16 all the while, but where every
weight trains.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cells import CLUSTERS, Cell, earlier, setting
from lib.packaged_without import without_rows
from lib.told import fresh_runs
from lib.worker import load_backbone_and_data, run_here

from autopeft import Recipe, recommend
from autopeft.counting import Budget, count
from autopeft.graph import build_graph
from autopeft.recipe import TrainingSection
from autopeft.recipe.pooling import pooled
from autopeft.runs.folder import load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.api import search
from autopeft.search.core.jobs import TrainJob
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare
from autopeft.search.planning.worker_setup import worker_setup
from autopeft.search.portfolio.templates import FittedRecipe, fitted, templates
from autopeft.search.selection.baselines import lora_rates
from autopeft.search.selection.contender import fresh_seeds
from autopeft.training import TrialOutcome, full_fine_tuning

__all__ = ["Run", "Runs"]

SINGLES = ("dora", "serial adapter", "parallel adapter", "krona", "ia3", "bitfit")
"""Templates of one method alone; where the budget takes none of a name's, its upper half is tried."""

FULL_RATES = (3e-5, 1e-4, 3e-4)
_LORA_AT = ("all", "last 50%", "last 33%")


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
            "LoRA, equal CPU": self._equal,
            "LoRA as users take it": self._plain,
            "the same, read alike": self._plain_alike,
            "portfolio's first": self._recommended,
            "best single method": self._single,
            "head alone": lambda: self._baseline("head alone", "head"),
            "full fine-tuning": self._full,
        }[contender]()
        if found is not None and set(found.test) == set(self._seeds):
            self._known.setdefault(found.hash, found)
        return found

    # The search and its baselines
    # ------------------------------------------------------------------------------------------------------

    @cached_property
    def _records(self) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Trials and final runs of the search, which is run, or gone on with, where that is needed."""
        if not (self._folder / "result.json").exists() or load_run(self._folder).result()["interrupted"]:
            if (self._folder / "manifest.json").exists():
                search(resume=self._folder, workers=0)
            else:
                search(**setting(self.cell, self.seed), out=self._folder, workers=0, fresh_baselines=True)
        run = load_run(self._folder)
        return run.trials().records, run.finals().records

    def _winner(self) -> Run:
        trials, finals = self._records
        result = load_run(self._folder).result()
        recipe = Recipe.from_file(self._folder / "recipe.yaml")
        tests = [r for r in finals if r.kind == "test" and r.state == "complete"]
        confirmed = [r for r in finals if r.kind == "confirm" and r.state == "complete"]
        spent = sum(r.seconds for r in (*trials, *confirmed))
        if not tests:  # LoRA itself is returned: its runs are the baseline's
            found = self._baseline("winner", "lora")
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

    def _single(self) -> Run | None:
        members = [
            member
            for name in SINGLES
            if (member := self._member(name, -1) or self._member(f"{name}, upper half", -1)) is not None
        ]
        return self._chosen("best single method", [m.recipe for m in members])

    def _equal(self) -> Run | None:
        """LoRA with further layers, sizes and rates, tried until it has taken as long as the search."""
        sweep, _ = self._of_baseline("lora")
        trials, finals = self._records
        limit = sum(r.seconds for r in (*trials, *(f for f in finals if f.kind == "confirm")))
        merits: dict[str, list[float]] = {}
        recipes: dict[str, Recipe] = {}
        spent = 0.0
        for record in sweep:
            recipe = Recipe.from_dict(dict(record.recipe))
            key = _hash(recipe, self.ready)
            recipes[key], spent = recipe, spent + record.seconds
            if record.rank is not None:
                merits.setdefault(key, []).append(record.rank)
        for recipe in self._more_lora():
            key = _hash(recipe, self.ready)
            if spent >= limit:
                break
            if key not in recipes:
                recipes[key] = recipe
                rank, seconds = self._tried(recipe)
                spent += seconds
                if rank is not None:
                    merits[key] = [rank]
        if not merits:
            return None
        # Two seeds go before one, as in the sweep.
        best = max(merits, key=lambda k: (len(merits[k]), statistics.fmean(merits[k])))
        lone = max(merits, key=lambda k: statistics.fmean(merits[k]))
        if lone != best:
            merits[lone].append(self._tried(recipes[lone], again=True)[0] or -math.inf)
            best = max((best, lone), key=lambda k: statistics.fmean(merits[k]))
        return self._final("LoRA, equal CPU", recipes[best], spent)

    def _more_lora(self) -> Iterator[Recipe]:
        most = Budget.parse(self.cell.budget).limits(self.ready.spec)[1]
        deep = self.ready.spec.logits is not None and self.ready.spec.logits.deep
        for share in (1.0, 0.5):
            for at in _LORA_AT:
                unit = count(_lora(1, at, 1e-3), self.ready.spec).deployed
                rank = int(share * most // unit)
                for rate in lora_rates(max(rank, 1), 4) if rank else ():
                    yield _lora(rank, at, rate, deep=deep)

    def _full(self) -> Run:
        """Every weight trains, in fp32, at the best of three rates on *select*."""
        model, data = load_backbone_and_data(self._setup)
        steps, seconds = self.ready.effort.steps, 0.0

        def trained(rate: float, seed: int, splits: tuple[str, ...]) -> TrialOutcome:
            section = TrainingSection(learning_rate=rate)
            plan = replace(self.ready.plan, steps=steps, seed=seed)
            return full_fine_tuning(model, data, plan, training=section, splits=splits)

        losses: dict[float, float] = {}
        for rate in FULL_RATES:
            done = trained(rate, self.seed, ("select",))
            losses[rate], seconds = done.losses["select"], seconds + done.seconds
        rate = min(losses, key=lambda r: losses[r])
        run = Run("full fine-tuning", f"learning rate {rate:g}", "full", self.ready.spec.parameters, {})
        run.seconds = seconds
        for seed in self._seeds:
            done = trained(rate, seed, ("select", "test"))
            run.select[seed], run.test[seed] = done.scores["select"], done.scores["test"]
            run.parts[seed] = done.parts["test"]
            run.step_time = done.measured.get("step_time")
        return run

    # Parts
    # ------------------------------------------------------------------------------------------------------

    def _member(self, name: str, rate: int) -> FittedRecipe | None:
        found = [
            m for t in templates() if t.name == name for m in fitted(t, self.ready.spec, self.ready.budget)
        ]
        return found[rate] if found else None

    def _chosen(self, contender: str, recipes: Sequence[Recipe]) -> Run | None:
        """The best of some recipes on *select*, with the search's seed."""
        tried = [(recipe, *self._tried(recipe)) for recipe in recipes]
        ranked = [(rank, recipe) for recipe, rank, _ in tried if rank is not None]
        if not ranked:
            return None
        best = max(ranked, key=lambda pair: pair[0])[1]
        return self._final(contender, best, sum(seconds for *_, seconds in tried))

    def _tried(self, recipe: Recipe, *, again: bool = False) -> tuple[float | None, float]:
        """What a recipe is ranked by on *select*, and the seconds that it took."""
        seed = self.seed + 500 if again else self.seed
        job = TrainJob(
            "tried", "trial", recipe.name, recipe.to_dict(), seed, self.ready.effort.steps,
            precision=self.ready.arguments.precision, rank_by=self.ready.rank_by,
        )  # fmt: skip
        (result,) = run_here(self._setup, job, strict=False)
        return result.rank, result.seconds

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


def _lora(rank: int, at: str, rate: float, *, deep: bool = False) -> Recipe:
    """A LoRA whose head trains as that of the baseline."""
    groups = {"head": {"learning_rate": 1e-2}} | ({"head.hidden": {"learning_rate": 3e-4}} if deep else {})
    return Recipe.from_dict(
        {
            "autopeft": 2,
            "name": f"lora rank {rank}, {at}",
            "layers": [{"at": at, "attach": [{"lora": {"rank": rank}}]}],
            "training": {"learning_rate": rate, "groups": groups},
        }
    )


def _hash(recipe: Recipe, ready: Prepared) -> str:
    return build_graph(recipe, ready.spec).trial_hash()


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
