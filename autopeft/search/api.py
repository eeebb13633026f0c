"""`search` and `plan`: the whole of a search as one call, and what it would do."""

from __future__ import annotations

import math
import random
import shutil
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.counting import Counts
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.baselines import Baseline, baselines
from autopeft.search.director import Director
from autopeft.search.estimate import Estimate, Work, estimate
from autopeft.search.front import FrontPoint, front_csv, front_json, pareto_front
from autopeft.search.jobs import CountTable, Reporter, SearchInfo, SilentReporter, TrialRecord
from autopeft.search.prepare import Arguments, Prepared, prepare
from autopeft.search.repair import feasible_share, repair
from autopeft.search.runfolder import RunFolder, write_atomic
from autopeft.search.selection import Contender, mean_sd
from autopeft.search.starts import starting_points
from autopeft.search.study import Repaired, SearchStudy

__all__ = ["DryRun", "Sample", "SearchResult", "plan", "search"]

_PROBE = 200


@dataclass(frozen=True)
class SearchResult:
    """What a search found; the same is in its run folder.

    Attributes:
        winner: the best recipe inside the budget.
        counts: its four counts and shares.
        number: its trial.
        select, test: its scores with fresh seeds; empty where they were not measured.
        search_score: what it scored in the search itself, with the search's seed.
        confirmed: whether it was retrained with fresh seeds.
        baselines: at the same budget, trained the same way, with fresh seeds.
        front: deployed parameters against the score on *select*.
        trials: every trial.
        interrupted, exhausted, out_of_time: why it ended before the planned number of trials, if it did.
        notice: one line where the data stand in for others.
    """

    winner: Recipe
    counts: CountTable
    number: int
    metric: str
    select: tuple[float, ...]
    test: tuple[float, ...]
    search_score: float
    confirmed: bool
    baselines: tuple[Contender, ...]
    front: tuple[FrontPoint, ...]
    trials: tuple[TrialRecord, ...] = field(repr=False)
    run: Path
    interrupted: bool
    exhausted: bool
    out_of_time: bool
    notice: str | None
    seconds: float

    @property
    def select_mean(self) -> float | None:
        return mean_sd(self.select)[0]

    @property
    def select_sd(self) -> float | None:
        return mean_sd(self.select)[1]

    @property
    def test_mean(self) -> float | None:
        return mean_sd(self.test)[0]

    @property
    def test_sd(self) -> float | None:
        return mean_sd(self.test)[1]

    def to_dict(self) -> dict[str, Any]:
        """The outcome in numbers, JSON-able; trials and front are in files of their own."""
        skipped = ("winner", "baselines", "front", "trials")
        data: dict[str, Any] = {k: v for k, v in vars(self).items() if k not in skipped}
        data["run"] = str(self.run)
        data.update(
            recipe=self.winner.to_dict(),
            select_mean=self.select_mean,
            select_sd=self.select_sd,
            test_mean=self.test_mean,
            test_sd=self.test_sd,
            baselines=[_contender_dict(c) for c in self.baselines],
            trials={
                state: sum(t.state == state for t in self.trials)
                for state in ("complete", "failed", "duplicate")
            },
        )
        return data


def _contender_dict(c: Contender) -> dict[str, Any]:
    means = {k: getattr(c, k) for k in ("select_mean", "select_sd", "test_mean", "test_sd")}
    return {**vars(c), **means}


class _FolderVault:
    """Saved hybrids in the run's scratch folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        target = self._folder / key
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name, data in files.items():
            write_atomic(target / Path(name).name, data)

    def get(self, key: str) -> Mapping[str, bytes] | None:
        target = self._folder / key
        return {p.name: p.read_bytes() for p in sorted(target.iterdir())} if target.is_dir() else None


def search(
    *, reporter: Reporter | None = None, notify: Callable[[str], None] | None = None, **arguments: Any
) -> SearchResult:
    """Find the best hybrid under a budget.

    Args:
        reporter: is told of every event (see `Reporter`).
        notify: takes one line where data are fetched or stand in for others.
        task: a task's name, or a data file or folder.
        budget: limit on deployed parameters: `"0.5%"`, `"300k"`, `"0.1%..1%"`.
        space: a space's name, a YAML file or a `Space`.
        model: a packaged alias, a folder or a hub name.
        effort: `quick`, `normal` or `thorough`; default quick on a CPU, normal on a GPU.
        trials, steps, train_rows, select_rows, test_rows, confirm, confirm_seeds: override the effort
            (`confirm` is the number of finalists).
        time: time budget of the whole run, seconds or `"30m"`.
        seed: of sampler, heads, modules, data order and splits.
        sampler: `gp`, `tpe` or `random`.
        workers, cpus_per_trial, gpus_per_trial: jobs at a time, and what each takes.
        address: an existing Ray cluster; default a private, local one.
        max_length, batch_size, micro_batch: of training.
        precision: of the backbone while recipes are tried: `fp32`, or `bf16`, which is faster and rougher;
            finalists and baselines are trained in fp32.
        shortcuts: whether layers below everything that a recipe alters come from stored states (fp16), and
            the last layer serves only what the head reads.
        text, text_pair, label, metric, class_weights, stand_in: of the task (see `autopeft.tasks.load_task`).
        out, runs: the run folder, or the folder to make it in.

    Ctrl-C ends the search with the best found so far; it is then not retrained, and `test` is empty.

    Raises:
        UsageError: an argument is wrong, or nothing in the space fits the budget.
        AutoPEFTError: every trial failed, or Ray could not be started.
    """
    start = clock.monotonic()
    ready = prepare(Arguments(**arguments), notify)
    a = ready.arguments
    folder = RunFolder.create(a.task, ready.key(), root=a.runs, out=a.out)
    with folder.locked():
        folder.write_json("manifest.json", ready.manifest())
        try:
            director = _run(ready, folder, reporter or SilentReporter())
            return _finish(ready, folder, director, clock.monotonic() - start)
        finally:
            shutil.rmtree(folder.scratch, ignore_errors=True)


def _run(ready: Prepared, folder: RunFolder, reporter: Reporter) -> Director:
    # Ray takes seconds to import, and a dry run never needs it.
    from autopeft.search.engine import Pool, run_jobs
    from autopeft.search.worker import WorkerSetup, execute

    a, effort = ready.arguments, ready.effort
    rivals = baselines(ready.spec, ready.limits, effort.rates)
    director = Director(
        _study(ready, folder.journal),
        effort,
        rivals,
        reporter,
        _FolderVault(folder.scratch / "hybrids"),
        lambda record: folder.append_line(
            "trials.jsonl" if record.kind == "trial" else "finals.jsonl", record
        ),
        seed=a.seed,
        workers=ready.workers or 1,
        seconds=ready.seconds,
    )
    reporter.on_start(_info(ready, folder, rivals))
    setup = WorkerSetup(
        a.model, ready.source, ready.task, ready.plan, a.cpus_per_trial, ready.key(), a.precision
    )
    pool = Pool(ready.workers, a.cpus_per_trial, ready.gpus, a.address)
    run_jobs(director, execute, setup, pool, folder.scratch / "ray")
    director.abandon()
    return director


def _study(ready: Prepared, journal: Path) -> SearchStudy:
    def mend(values: dict[str, Any]) -> Repaired:
        found = repair(ready.space, values, ready.budget, ready.spec)
        return Repaired(found.recipe, found.counts, build_graph(found.recipe, ready.spec).trial_hash())

    bound = ready.space.bind(ready.spec)
    return SearchStudy(
        journal,
        bound.parameters,
        mend,
        sampler=ready.sampler,
        seed=ready.arguments.seed,
        trials=ready.effort.trials,
        first=starting_points(bound, max(1, min(6, ready.effort.trials // 3))),
    )


def _info(ready: Prepared, folder: RunFolder, rivals: list[Baseline]) -> SearchInfo:
    a, effort = ready.arguments, ready.effort
    return SearchInfo(
        task=a.task,
        model=a.model,
        space=ready.space_name,
        budget=str(a.budget),
        limits=ready.limits,
        metric=ready.task.metric,
        trials=effort.trials,
        steps=effort.steps,
        jobs=effort.trials + effort.top * effort.seeds + len(rivals) * (effort.rates + effort.seeds),
        workers=ready.workers or 1,
        estimated_seconds=_estimate(ready, len(rivals)).seconds,
        notice=ready.task.source.notice,
        run=str(folder.path),
    )


def _estimate(ready: Prepared, rivals: int) -> Estimate:
    texts = ready.task.splits["train"].texts[:_PROBE]
    pairs = (ready.task.splits["train"].pairs or [])[:_PROBE]
    words = sum(len(t.split()) for t in (*texts, *pairs)) / max(1, len(texts))
    tokens = min(float(ready.plan.max_length), 2.0 + 1.35 * words)
    found = estimate(
        Work.of(ready.spec, tokens),
        ready.effort,
        batch_size=ready.plan.batch_size,
        select_rows=len(ready.task.splits["select"]),
        test_rows=len(ready.task.splits["test"]),
        workers=ready.workers or 1,
        baselines=rivals,
        gpu=ready.gpus > 0,
    )
    if ready.seconds is not None and ready.seconds < found.seconds:
        return Estimate(ready.seconds, found.trial_seconds, found.memory)
    return found


def _finish(ready: Prepared, folder: RunFolder, director: Director, seconds: float) -> SearchResult:
    study = director.study
    records = study.records()
    best = study.best()
    if not best:
        raise AutoPEFTError(_nothing(director, records))
    winner, chosen = director.winner, best[0]
    if winner is not None and winner.number is not None and winner.good:
        chosen = study.get(winner.number)
        files = director.vault.get(winner.good[0].job)
    else:
        winner, files = None, None
        kept = None if director.kept is None else study.get(director.kept)
        if kept is not None and kept.score == chosen.score:
            # Of equal trials the one whose weights were kept, so that recipe and weights are of the same
            # hybrid.
            chosen, files = kept, director.vault.get("best")
    final = None if winner is None else winner.contender()
    recipe = Recipe.from_dict(dict(chosen.recipe))
    front = pareto_front(records)
    result = SearchResult(
        winner=recipe,
        counts=chosen.counts or {},
        number=chosen.number if chosen.number is not None else -1,
        metric=ready.task.metric,
        select=final.select if final else (),
        test=final.test if final else (),
        search_score=chosen.score if chosen.score is not None else math.nan,
        confirmed=final is not None,
        baselines=tuple(director.baselines()),
        front=tuple(front),
        trials=tuple(records),
        run=folder.path,
        interrupted=director.interrupted,
        exhausted=director.exhausted,
        out_of_time=director.out_of_time,
        notice=ready.task.source.notice,
        seconds=seconds,
    )
    if files is not None:
        folder.write_winner(files)
    folder.write_lines("trials.jsonl", list(records))
    folder.write_text("recipe.yaml", recipe.to_yaml())
    folder.write_text("front.csv", front_csv(front))
    folder.write_text("front.json", front_json(front))
    folder.write_json("result.json", result.to_dict())
    return result


def _nothing(director: Director, records: list[TrialRecord]) -> str:
    failed = [r for r in records if r.state == "failed" and r.failure != "stopped"]
    if director.interrupted and not failed:
        return "Stopped before the first trial had finished: there is nothing to keep."
    cause = director.first_error or next((r.error for r in failed if r.error), "the space gave no recipe")
    return f"All {len(failed)} trials failed. The first failure: {cause}"


@dataclass(frozen=True)
class Sample:
    """A recipe that a search could try, and its counts."""

    recipe: Recipe
    counts: Counts


@dataclass(frozen=True)
class DryRun:
    """What a search would do.

    Attributes:
        cardinality: recipes of the space before the budget; infinite where it has a continuous parameter.
        feasible: share of random members that fit the budget without repair.
        estimate: time and memory.
    """

    prepared: Prepared
    cardinality: int | float
    feasible: float
    samples: tuple[Sample, ...]
    baselines: tuple[Baseline, ...]
    estimate: Estimate


def plan(*, samples: int = 5, notify: Callable[[str], None] | None = None, **arguments: Any) -> DryRun:
    """Say what `search` with these arguments would do, without starting anything.

    Raises:
        UsageError: an argument is wrong, or nothing in the space fits the budget.
    """
    ready = prepare(Arguments(**arguments), notify)
    rng = random.Random(ready.arguments.seed)
    found: dict[str, Sample] = {}
    for _ in range(20 * samples):
        if len(found) >= samples:
            break
        fixed = repair(ready.space, ready.space.sample(rng, ready.spec), ready.budget, ready.spec)
        trial = build_graph(fixed.recipe, ready.spec).trial_hash()
        found.setdefault(trial, Sample(fixed.recipe, fixed.counts))
    rivals = baselines(ready.spec, ready.limits, ready.effort.rates)
    return DryRun(
        prepared=ready,
        cardinality=ready.space.cardinality(ready.spec),
        feasible=feasible_share(ready.space, ready.budget, ready.spec, n=_PROBE, seed=ready.arguments.seed),
        samples=tuple(found.values()),
        baselines=tuple(rivals),
        estimate=_estimate(ready, len(rivals)),
    )
