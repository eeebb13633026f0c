"""`search`: the whole of a search as one call."""

from __future__ import annotations

import logging
import shutil
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from autopeft.arguments import takes
from autopeft.counting import Budget
from autopeft.devices import count
from autopeft.errors import AutoPEFTError, StoppedError, UsageError
from autopeft.foreign import check_inside
from autopeft.recipe import Recipe
from autopeft.runs.files import make_folder
from autopeft.runs.folder import RunFolder, as_typed, load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.checkpoints import Clock, FolderCheckpoints
from autopeft.search.controller.completed_runs import KnownRuns
from autopeft.search.controller.controller import Controller
from autopeft.search.controller.finish import finish
from autopeft.search.controller.precision import PrecisionStage
from autopeft.search.core.events import Reporter, SearchInfo, SilentReporter
from autopeft.search.execution.executor import Executor
from autopeft.search.execution.logged_jobs import JOBS, LoggedJobs
from autopeft.search.optimization.journal import journal_begun
from autopeft.search.optimization.warm_start import runs_as_paths
from autopeft.search.planning.arguments import SearchArguments, SearchCall
from autopeft.search.planning.dry_run import DryRun, Sample, estimate_of, plan
from autopeft.search.planning.prepare import Prepared, prepare, worker_setup
from autopeft.search.planning.resume import SPACE, prepare_again, resume_command
from autopeft.search.portfolio.recommend import KIND, own_clusters
from autopeft.search.portfolio.starting import portfolio_points
from autopeft.search.selection.baseline_cache import BaselineCache, RunKeys
from autopeft.search.selection.result import SearchResult
from autopeft.search.selection.verdicts import Judge
from autopeft.search.space.candidate import keeps_within
from autopeft.search.space.initial_points import starting_points, upper_points
from autopeft.search.strategies.contract import Strategy, StrategyContext
from autopeft.search.strategies.registry import STRATEGIES
from autopeft.search.tracking.reporter import parse_trackers, track
from autopeft.tasks.scored import ScoredSplit

__all__ = ["DryRun", "Sample", "SearchResult", "plan", "search"]

Notify = Callable[[str], None] | None
_HASTE = 5.0
_log = logging.getLogger("autopeft")


@takes(SearchCall)
def search(call: SearchCall) -> SearchResult:
    """Find the best hybrid under a budget.

    A search needs `task` and `budget`, or `resume`; beside `resume` only what does not decide the outcome may
    be given (workers, GPUs, time, trackers), and rows or a model in memory.

    Args:
        {arguments}

    Ctrl-C or SIGTERM ends the search with the best found so far; it is then not retrained, and `test` is
    empty. `resume` goes on from there, or from whatever a crash left.

    Raises:
        UsageError: an argument is wrong, or nothing in the space fits the budget.
        StoppedError: it was interrupted before any trial was trained to the end.
        AutoPEFTError: every trial failed, or Ray could not be started.

    Example:
        >>> result = autopeft.search(task="sst2", budget="0.5%")           # doctest: +SKIP
        >>> result.winner, result.test                                     # doctest: +SKIP
    """
    start = clock.monotonic()
    if call.resume is not None:
        told = call.base(SearchArguments)
        changes = {k: getattr(told, k) for k in told.model_fields_set - {"runs"}}
        folder = load_run(call.resume, root=call.runs)
        check_inside(folder.path)
        with folder.locked(), _ended_early(folder, call.notify, changes):
            return _go(prepare_again(folder, changes, call.notify), folder, call.reporter, call.notify, start)
    given = call.base(SearchArguments)
    if given.warm_start:  # names of runs as paths: this run is not there yet, and its name may match too
        given = given.changed(warm_start=runs_as_paths(given.warm_start, runs=given.runs))
    ready = prepare(given, call.notify)
    a = ready.arguments
    folder = RunFolder.create(ready.task_name, ready.key(), root=a.runs, out=a.out)
    with folder.locked(), _ended_early(folder, call.notify, vars(a), new=True):
        folder.write_json("manifest.json", ready.manifest())
        folder.write_text(SPACE, ready.space.text)
        return _go(ready, folder, call.reporter, call.notify, start)


@contextmanager
def _ended_early(
    folder: RunFolder, notify: Notify, arguments: Mapping[str, Any], *, new: bool = False
) -> Iterator[None]:
    """Leave no run behind if nothing was begun; say how to go on where an interruption leaves the block."""
    try:
        yield
    except BaseException as error:
        if new and not (folder.path / JOBS).exists():
            with suppress(OSError):  # what ended the search is told, not that this failed too
                folder.discard()
            if isinstance(error, StoppedError):
                raise StoppedError("Interrupted before the first trial began: nothing is kept.") from error
        elif isinstance(error, KeyboardInterrupt) and notify is not None:
            notify(f"Interrupted. Go on with: {resume_command(folder.path, arguments)}")
        raise


def _go(
    ready: Prepared, folder: RunFolder, reporter: Reporter | None, notify: Notify, start: float
) -> SearchResult:
    """Run a search that is prepared, in its locked folder."""
    from autopeft.search.execution.worker import execute

    make_folder(folder.state)
    spent = Clock(folder.state / "clock.json")
    if reporter is None:  # what limits the scores is said all the same
        for remark in ready.summary.remarks:
            (notify or _log.warning)(remark)
    for problem in (folder.trials().problem, folder.finals().problem):
        if problem is not None and notify is not None:
            notify(problem)

    # What an earlier process of the run, or another search, has trained already.
    a, effort, baselines, predicted = ready.arguments, ready.effort, ready.baselines(), ready.step_cost
    checkpoints = FolderCheckpoints(folder.state / "files")
    keys = RunKeys(ready.task, ready.source, ready.spec, ready.plan)
    cache = BaselineCache(reuse=not a.fresh_baselines, notify=notify)
    known = KnownRuns(folder, checkpoints, keys, cache, ready.rank_by, ready.place)
    strategy = _open_strategy(ready, folder, checkpoints, notify)

    def keep(record: TrialRecord) -> None:
        if record.kind == "trial":
            folder.append_line("trials.jsonl", record)
        elif not (record.kept and record.job in known.past):  # which stands there already
            folder.append_line("finals.jsonl", record)
            known.remember(record)
        spent.write(clock.monotonic() - start)

    watching: Reporter = reporter or SilentReporter()
    names = parse_trackers(a.log)
    tracking = track(names, folder, watching, notify) if names else None
    told: Reporter = tracking or watching
    try:
        controller = Controller(
            strategy,
            effort,
            baselines,
            told,
            checkpoints,
            keep,
            seed=a.seed,
            workers=ready.workers or 1,
            precision=PrecisionStage(
                a.precision,
                parameters=ready.spec.parameters,
                seed=a.seed,
                folder=folder.path,
                notify=notify,
                final=a.final_precision,
                found=ready.precision,
            ),
            rank_by=ready.rank_by,
            trial_metric=ready.trial_metric,
            judge=Judge(
                ready.goal,
                a.margin / 100,
                ScoredSplit.of(ready.task, "select", ready.trial_metric),
                None if predicted is None else (lambda recipe: predicted(Recipe.from_dict(dict(recipe)))),
                lambda recipe: keeps_within(Recipe.from_dict(dict(recipe)), ready.budget, ready.spec),
            ),
            recall=known.recall,
            past=list(known.past.values()),
            seconds=ready.seconds,
            spent=spent.before + clock.monotonic() - start,  # what was prepared until now took its time too
            test_share=len(ready.task.splits["test"]) / max(1, len(ready.task.splits["select"])),
            grace=a.grace,
        )

        def ending() -> None:
            controller.abandon()
            if tracking is not None and controller.interrupted:
                tracking.close(_HASTE, at_most=_HASTE)
            elif tracking is not None:
                tracking.close()

        told.on_start(
            SearchInfo(
                task=ready.task_name,
                model=ready.model_name,
                space=ready.space_name,
                budget=str(a.budget),
                limits=ready.limits,
                metric=ready.task.metric,
                outline=ready.outline,
                jobs=effort.trials
                + effort.top * effort.seeds
                + sum(b.sweep_runs + b.fresh_runs(effort.seeds) for b in baselines),
                workers=None if ready.workers is None else max(ready.workers, 1),
                estimated_seconds=estimate_of(ready, baselines).seconds,
                notice=ready.task.source.notice,
                run=str(folder.path),
                data=ready.summary,
                trial_metric=ready.trial_metric,
            )
        )
        jobs = LoggedJobs(controller, folder)
        try:
            _executor(ready, folder, notify).run_jobs(jobs, execute, worker_setup(ready), ending=ending)
        finally:
            with suppress(AutoPEFTError):  # what ended the search is told, not that this failed too
                jobs.close()
        result = finish(ready, folder, controller, spent.before + clock.monotonic() - start)
    finally:
        if tracking is not None:
            tracking.close(_HASTE)  # it is closed, unless something failed
        shutil.rmtree(folder.scratch, ignore_errors=True)
    if controller.finished:
        shutil.rmtree(folder.state, ignore_errors=True)
    return result


def _executor(ready: Prepared, folder: RunFolder, notify: Notify) -> Executor:
    """What runs the jobs: this process, or Ray, which takes seconds to import."""
    a = ready.arguments
    if ready.workers == 0:
        from autopeft.search.execution.local_executor import LocalExecutor
        from autopeft.search.execution.worker import release

        return LocalExecutor(release)
    from autopeft.search.execution.model_transfer import pack
    from autopeft.search.execution.ray_executor import Pool, RayExecutor

    return RayExecutor(
        Pool(
            ready.workers,
            ready.cpus,
            ready.gpus,
            a.address,
            a.listen,
            gpus_here=count() if ready.gpus else None,
        ),
        folder.scratch / "ray",
        model_files=pack(ready.source) if a.address or a.listen else None,
        resume=resume_command(folder.path, vars(a)),
        logs=folder.logs / "ray",
        notify=notify,
    )


def _open_strategy(ready: Prepared, folder: RunFolder, store: FolderCheckpoints, notify: Notify) -> Strategy:
    """The run's strategy, new or where an earlier process left it, and its records in the run folder.

    Raises:
        UsageError: the strategy does not know some of the trials that had ended, as its journal is gone or
            cut.
    """
    past, bound = folder.trials().records, ready.space.bind(ready.spec)
    first: list[dict[str, Any]] = []
    opened = STRATEGIES.find(ready.arguments.strategy)
    if opened.takes_points and not past and not journal_begun(folder.journal):
        # What other runs found, then what the portfolio says and LoRA, else where spaces start; and cheap
        # recipes where these are looked for.
        found, notices = ready.named_points()
        count = max(1, min(6, ready.effort.trials // 3))
        cheap = upper_points(bound, count) if ready.cost == "step_cost" else []
        known: list[dict[str, Any]] = []
        if ready.arguments.portfolio and ready.task.kind == KIND:  # the kind that there is evidence of
            known, line = portfolio_points(
                bound,
                Budget.parse(ready.arguments.budget),
                len(ready.task.splits["train"]),
                max(0, ready.effort.trials - len(found) - len(cheap)),
                leave_out=own_clusters(ready.arguments.task, ready.task),
                serve=ready.arguments.serve,
            )
            notices = [*notices, *([] if line is None else [line])]
        for line in notices:
            if notify is not None:
                notify(line)
        # Beside known points, of the space's own starts the second one, a method alone, where there is one.
        starts = starting_points(bound, 2 if known else max(1, count // 2) if cheap else count)
        first = [*found, *known, *cheap, *(starts[-1:] if known else starts)]
    strategy = opened.open(
        StrategyContext(
            space=bound,
            budget=ready.budget,
            effort=ready.effort,
            seed=ready.arguments.seed,
            sampler=ready.sampler,
            rungs=ready.rungs,
            objectives=1 if ready.cost is None else 2,
            cost=ready.cost or "deployed",
            step_cost=ready.step_cost,
            folder=folder.path,
            checkpoints=store,
            first=first,
            past=past,
        )
    )

    records = strategy.records()
    over = ("complete", "estimated", "stopped", "duplicate")
    ended = {record.number for record in past if record.state in over}
    lost = ended - {record.number for record in records}
    if lost:
        raise UsageError(
            f"{str(folder.path)!r} cannot go on: {folder.journal.name} lacks {len(lost)} of the {len(ended)} "
            f"trials that had ended. Put the whole file back, or begin another search with what they found: "
            f"--from {as_typed(folder.path)}."
        )
    folder.write_lines("trials.jsonl", [record for record in records if record.state != "paused"])
    return strategy
