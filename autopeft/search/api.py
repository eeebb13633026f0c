"""`search`: the whole of a search as one call."""

from __future__ import annotations

import shutil
import time as clock
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.runs.folder import RunFolder, load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.checkpoints import Clock, FolderCheckpoints
from autopeft.search.controller.completed_runs import CompletedRuns, KnownRuns
from autopeft.search.controller.controller import Controller
from autopeft.search.controller.finish import finish
from autopeft.search.core.events import Reporter, SearchInfo, SilentReporter
from autopeft.search.optimization.warm_start import points_from
from autopeft.search.planning.dry_run import DryRun, Sample, estimate_of, plan
from autopeft.search.planning.prepare import Arguments, Prepared, prepare
from autopeft.search.planning.resume import SPACE, prepare_again
from autopeft.search.selection.baseline_cache import BaselineCache, RunKeys
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.result import SearchResult
from autopeft.search.space.initial_points import starting_points
from autopeft.search.strategies.contract import Strategy, StrategyContext
from autopeft.search.strategies.registry import get_strategy
from autopeft.search.tracking.reporter import Tracking, parse_trackers, track

__all__ = ["DryRun", "Sample", "SearchResult", "plan", "search"]

Notify = Callable[[str], None] | None
_HASTE = 5.0


def search(
    *,
    reporter: Reporter | None = None,
    notify: Notify = None,
    resume: str | Path | None = None,
    **arguments: Any,
) -> SearchResult:
    """Find the best hybrid under a budget.

    Args:
        reporter: is told of every event (see `Reporter`).
        notify: takes one line where data are fetched or stand in for others, or a tracker fails.
        resume: a run that was cut off (a path, a name under `runs`, or `latest`), to go on with; beside it
            only `workers`, `cpus_per_trial`, `gpus_per_trial`, `address`, `time`, `log` and `runs` may be
            given.
        task: a task's name, or a data file or folder.
        budget: limit on deployed parameters: `"0.5%"`, `"300k"`, `"0.1%..1%"`.
        space: a space's name, a YAML file or a `Space`.
        model: a packaged alias, a folder or a hub name.
        effort: `quick`, `normal` or `thorough`; default quick on a CPU, normal on a GPU.
        trials, steps, train_rows, select_rows, test_rows, confirm, confirm_seeds: override the effort
            (`confirm` is the number of finalists).
        time: time budget of the whole run, seconds or `"30m"`.
        seed: of sampler, heads, modules, data order and splits.
        strategy: what turns the space into candidates: `trials`, or one of another package.
        sampler: `gp`, `tpe`, `nsga2`, `evolution`, `linear` or `random`; default: `tpe`, or `linear` with two
            objectives.
        fidelity: what a trial has less of before it is worth more: `steps`, `data` (steps and training rows),
            or `none`. There are rungs at a third, a ninth … of the steps, down to 40.
        objective: `score`, or `score,params` to look for small recipes as well as for good ones.
        workers, cpus_per_trial, gpus_per_trial: jobs at a time, and what each takes.
        warm_start: runs and recipes to begin with: paths, names under `runs`, `latest`.
        baselines: `all`, `none`, or some of `lora,single,random,middle,head`; default LoRA and the head in
            `quick`, else all. Each is trained once per task and budget and kept; `fresh_baselines` trains
            them again.
        address: an existing Ray cluster; default a private, local one.
        max_length, batch_size, micro_batch: of training.
        precision: of the backbone while recipes are tried: `fp32`, or `bf16`, which is faster and rougher;
            finalists and baselines are trained in fp32.
        shortcuts: whether layers below everything that a recipe alters come from stored states (fp16), and
            the last layer serves only what the head reads.
        text, text_pair, label, kind, metric, class_weights, stand_in: of the task (see
            `autopeft.tasks.load_task`).
        log: `none`, or some of `tensorboard,mlflow,wandb`: has every trial, and every run after the search,
            logged there, by default in the run folder (see `autopeft.search.tracking.ray_callbacks`).
            A tracker that fails is named to `notify`, and the search goes on without it.
        out, runs: the run folder, or the folder to make it in.

    Ctrl-C ends the search with the best found so far; it is then not retrained, and `test` is empty. `resume`
    goes on from there, or from whatever a crash left.

    Raises:
        UsageError: an argument is wrong, or nothing in the space fits the budget.
        AutoPEFTError: every trial failed, or Ray could not be started.
    """
    start = clock.monotonic()
    if resume is not None:
        folder = load_run(resume, root=arguments.pop("runs", "runs"))
        with folder.locked():
            return _go(prepare_again(folder, arguments, notify), folder, reporter, notify, start)
    ready = prepare(Arguments(**arguments), notify)
    a = ready.arguments
    folder = RunFolder.create(a.task, ready.key(), root=a.runs, out=a.out)
    with folder.locked():
        folder.write_json("manifest.json", ready.manifest())
        folder.write_text(SPACE, ready.space.text)
        return _go(ready, folder, reporter, notify, start)


def _go(
    ready: Prepared, folder: RunFolder, reporter: Reporter | None, notify: Notify, start: float
) -> SearchResult:
    folder.state.mkdir(exist_ok=True)
    spent = Clock(folder.state / "clock.json")
    if ready.seconds is not None:
        ready = replace(ready, seconds=max(1.0, ready.seconds - spent.before))
    told = track(parse_trackers(ready.arguments.log), folder, reporter or SilentReporter(), notify)
    try:
        controller = _run(ready, folder, told, notify, spent, start)
        result = finish(ready, folder, controller, spent.before + clock.monotonic() - start)
    finally:
        told.close(_HASTE)  # it is closed, unless something failed
        shutil.rmtree(folder.scratch, ignore_errors=True)
    if controller.finished:
        shutil.rmtree(folder.state, ignore_errors=True)
    return result


def _run(
    ready: Prepared, folder: RunFolder, reporter: Tracking, notify: Notify, spent: Clock, start: float
) -> Controller:
    # Ray takes seconds to import, and a dry run never needs it.
    from autopeft.search.execution.model_transfer import pack
    from autopeft.search.execution.ray_executor import Pool, run_jobs
    from autopeft.search.execution.worker import WorkerSetup, execute

    a, effort, baselines = ready.arguments, ready.effort, ready.baselines()
    checkpoints = FolderCheckpoints(folder.state / "files")
    for problem in (folder.trials().problem, folder.finals().problem):
        if problem is not None and notify is not None:
            notify(problem)
    past = CompletedRuns(folder, checkpoints)
    keys = RunKeys(ready.task, ready.source, ready.spec, ready.plan)
    kept = KnownRuns(past, keys, BaselineCache(reuse=not a.fresh_baselines, notify=notify))
    strategy = _open_strategy(ready, folder, checkpoints, notify)
    finished = [record for record in strategy.records() if record.state != "paused"]
    folder.write_lines("trials.jsonl", finished)

    def keep(record: TrialRecord) -> None:
        if record.kind == "trial":
            folder.append_line("trials.jsonl", record)
        elif record.job not in past:
            folder.append_line("finals.jsonl", record)
            kept.remember(record)
        spent.write(clock.monotonic() - start)

    controller = Controller(
        strategy,
        effort,
        baselines,
        reporter,
        checkpoints,
        keep,
        seed=a.seed,
        workers=ready.workers or 1,
        recall=kept.recall,
        seconds=ready.seconds,
    )

    def ending() -> None:
        controller.abandon()
        reporter.close()

    reporter.on_start(_info(ready, folder, baselines))
    setup = WorkerSetup(
        a.model, ready.source, ready.task, ready.plan, a.cpus_per_trial, ready.key(), a.precision
    )
    pool = Pool(ready.workers, a.cpus_per_trial, ready.gpus, a.address)
    run_jobs(
        controller,
        execute,
        setup,
        pool,
        folder.scratch / "ray",
        model_files=pack(ready.source) if a.address else None,
        ending=ending,
        resume=f"autopeft search --resume {folder.path}",
    )
    return controller


def _open_strategy(ready: Prepared, folder: RunFolder, store: FolderCheckpoints, notify: Notify) -> Strategy:
    """The run's strategy, new or where an earlier process left it."""
    past = folder.trials().records
    begun = bool(past) or folder.journal.exists()
    context = StrategyContext(
        space=ready.space.bind(ready.spec),
        budget=ready.budget,
        effort=ready.effort,
        seed=ready.arguments.seed,
        sampler=ready.sampler,
        rungs=ready.rungs,
        objectives=ready.objectives,
        folder=folder.path,
        checkpoints=store,
        first=[] if begun else _first(ready, notify),
        past=past,
    )
    return get_strategy(ready.arguments.strategy).open(context)


def _first(ready: Prepared, notify: Notify) -> list[dict[str, Any]]:
    """What other runs found, then known hybrids at the budget."""
    bound = ready.space.bind(ready.spec)
    found, notices = points_from(ready.arguments.warm_start, bound, runs=ready.arguments.runs)
    for line in notices:
        if notify is not None:
            notify(line)
    return [*found, *starting_points(bound, max(1, min(6, ready.effort.trials // 3)))]


def _info(ready: Prepared, folder: RunFolder, baselines: list[Baseline]) -> SearchInfo:
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
        jobs=effort.trials
        + effort.top * effort.seeds
        + sum(b.sweep_runs + b.fresh_runs(effort.seeds) for b in baselines),
        workers=ready.workers or 1,
        estimated_seconds=estimate_of(ready, baselines).seconds,
        notice=ready.task.source.notice,
        run=str(folder.path),
    )
