"""From a search that has ended to its result, and every file that it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from scipy.stats import spearmanr

from autopeft.counting import further_task
from autopeft.errors import AutoPEFTError, StoppedError
from autopeft.hybrid.store import WEIGHTS
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import trained_entries
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import CountTable, Sample, TrialRecord
from autopeft.search.controller.controller import Controller
from autopeft.search.core.checkpoints import CheckpointStore
from autopeft.search.core.goals import Goal
from autopeft.search.optimization.hypervolume import hypervolume_course
from autopeft.search.optimization.pareto import front_csv, front_json, pareto_front
from autopeft.search.planning.resume import resume_command
from autopeft.search.selection.answers import Answer, answers, finding, origin
from autopeft.search.selection.contender import Contender, FreshRun, RepeatedRuns
from autopeft.search.selection.resource_use import resource_uses
from autopeft.search.selection.result import SearchResult
from autopeft.search.selection.significance import (
    Comparison,
    ScoredSplit,
    compare,
    compare_with_constant,
    selection_bias,
)
from autopeft.search.selection.stages import RETRAINED
from autopeft.search.selection.verdicts import best_baseline

if TYPE_CHECKING:
    from autopeft.search.planning.prepare import Prepared

__all__ = ["course", "finish", "trained_steps"]


def finish(ready: Prepared, folder: RunFolder, controller: Controller, seconds: float) -> SearchResult:
    """Write winner, front, trials and result of a search that has ended or was interrupted.

    Raises:
        StoppedError: the search was interrupted before a trial was trained to the end.
        AutoPEFTError: every trial failed (the message gives the first failure), or the weights of all that
            could be returned are gone.
    """
    strategy, selection = controller.strategy, controller.selection
    records = strategy.records()
    best = strategy.candidates(1)
    if not best:
        raise _nothing(ready, controller, records, folder)
    won = _won(controller, {record.number: record for record in records}, best[0])
    if won.files is None:
        raise AutoPEFTError(
            f"There are no weights of the best trial in {str(folder.state)!r}: no winner is written without "
            f"them. The trials stand in {str(folder.path / 'trials.jsonl')!r}; `autopeft search --from "
            f"{folder.name} …` starts from them, and {resume_command(folder.path, vars(ready.arguments))} "
            "retrains the best."
        )
    final, trial = won.final, won.trial
    baselines = [stage.runs.contender() for stage in selection.baselines if stage.runs.runs]
    recipe, margin = Recipe.from_dict(dict(won.recipe)), ready.arguments.margin / 100
    test, constant = ScoredSplit.of(ready.task), ready.summary.constant
    comparisons: tuple[Comparison, ...] = ()
    over_constant, bias, found = None, None, dict[Goal, Answer | None]()
    if final is not None:
        comparisons = tuple(
            compare(
                final.by_seed,
                baseline.by_seed,
                test,
                name=baseline.name,
                parts=(final.parts, baseline.parts),
                margin=margin,
            )
            for baseline in baselines
            if baseline.recipe != final.recipe
        )
        leader = best_baseline([stage.runs for stage in selection.baselines])
        beside = None if leader is None else leader.contender()
        found = answers(selection.verdicts, beside, controller.trial_metric)
        if constant is not None:
            over_constant = compare_with_constant(
                final.by_seed,
                test,
                name=constant.name,
                score=constant.scores["test"],
                parts=(final.parts, constant.parts),
                margin=margin,
            )
        if ready.trial_metric is None:
            select = ScoredSplit.of(ready.task, "select")
            bias = selection_bias(final.select_mean, final.test_mean, select, test)
    if constant is not None and ready.trial_metric is not None:  # its score on *select* is of another metric
        scores = {name: score for name, score in constant.scores.items() if name != "select"}
        constant = replace(constant, scores=scores)
    measured = {**((trial and trial.measured) or {}), **({} if final is None else final.measured)}
    rows = [("winner", recipe.to_dict(), measured)]
    rows += [(baseline.name, dict(baseline.recipe), dict(baseline.measured)) for baseline in baselines]
    result = SearchResult(
        winner=recipe,
        counts=won.counts,
        number=None if trial is None else trial.number,
        metric=ready.task.metric,
        trial_metric=ready.trial_metric,
        select=final.select if final else (),
        test=final.test if final else (),
        search_score=math.nan if trial is None or trial.score is None else trial.score,
        confirmed=final is not None,
        baselines=tuple(baselines),
        front=tuple(pareto_front(records)),
        trials=tuple(records),
        run=folder.path,
        interrupted=controller.interrupted,
        exhausted=strategy.exhausted,
        out_of_time=strategy.out_of_time,
        notice=ready.task.source.notice,
        seconds=seconds,
        steps=sum(map(trained_steps, records)),
        hypervolume=tuple(course(records, ready.limits[1])),
        comparisons=comparisons,
        bias=bias,
        constant=constant,
        over_constant=over_constant,
        remarks=(*ready.summary.remarks, *_remarks(controller)),
        taken=resource_uses(rows, ready.spec, partial(ready.predictor, everything=True)),
        further_task=_further_task(ready, rows),
        within=ready.within,
        origin=won.origin,
        goal=ready.goal,
        finding=_finding(ready, controller, won, comparisons, found),
        answers=found,
        samples=won.samples,
        precision=controller.precision(final=final is not None),
        finalists=sum(bool(finalist.good) for finalist in selection.finalists),
    )
    folder.write_winner(won.files)
    folder.write_lines("trials.jsonl", list(result.trials))
    folder.write_text("recipe.yaml", result.winner.to_yaml())
    folder.write_text("front.csv", front_csv(list(result.front)))
    folder.write_text("front.json", front_json(list(result.front)))
    folder.write_json("result.json", result.to_dict())
    return result


def _further_task(ready: Prepared, rows: Iterable[tuple[str, Mapping[str, Any], object]]) -> dict[str, int]:
    """By name; empty where there is one task."""
    if not ready.task.members:
        return {}
    return {name: further_task(Recipe.from_dict(dict(told)), ready.spec) for name, told, _ in rows if told}


@dataclass(frozen=True)
class _Won:
    """The winner: a trial, confirmed or not, or a candidate of a baseline, which is no trial.

    `counts` are those of the weights that are kept: a data-dependent method leaves other sizes with each
    seed. `instead` says why what reached the goal is not returned.
    """

    recipe: Mapping[str, Any]
    origin: str
    counts: CountTable
    trial: TrialRecord | None
    final: Contender | None
    files: Mapping[str, bytes] | None
    samples: tuple[Sample, ...] = ()
    instead: str | None = None


def _won(controller: Controller, by_number: Mapping[int | None, TrialRecord], best: TrialRecord) -> _Won:
    """What is returned: the winner where its weights are there, else the next best whose weights are."""
    controller.selection.conclude()
    selection, store = controller.selection, controller.checkpoints
    first = selection.winner
    if first is not None and _kept_run(first, store) is None:
        first = selection.choose(lambda side: _kept_run(side, store) is not None)
    found = None if first is None else _kept_run(first, store)
    if first is not None and found is not None:
        (run, files), final = found, first.contender()
        # Of its best run, or of the next that has kept some.
        samples = next((run.samples for run in first.good if run.samples), ())
        trial = None if first.number is None else by_number[first.number]
        won = _Won(final.recipe, origin(final), run.counts or final.counts, trial, final, files, samples)
    else:
        # Of equal trials the one whose weights are kept, so that recipe and weights are of one hybrid.
        kept = controller.best.files()
        if kept is not None and controller.best.number is not None:
            best = by_number[controller.best.number]
        whole = kept if kept and kept.get(WEIGHTS) else None
        won = _Won(best.recipe, f"trial {best.number}", best.counts or {}, best, None, whole)
    why = [
        f"{origin(side.contender())} won, but the training of its weights failed ({error.rstrip('.')})"
        for side, error in selection.passed_over
    ]
    winner = selection.winner
    if winner is not None and winner is not first:
        gone = "its weights are no longer there"
        if controller.interrupted:
            gone = "the search was interrupted before its weights were trained"
        why.append(f"{origin(winner.contender())} won, but {gone}")
    return replace(won, instead=f"{'. '.join(why)}: {won.origin} is returned instead." if why else None)


def _kept_run(side: RepeatedRuns, store: CheckpointStore) -> tuple[FreshRun, Mapping[str, bytes]] | None:
    """The best run of a recipe whose weights are there, and these."""
    for run in side.good:
        for key in (run.job, f"{RETRAINED}{run.job}"):
            files = store.get(key)
            if files and files.get(WEIGHTS):
                return run, files
    return None


def _finding(
    ready: Prepared,
    controller: Controller,
    won: _Won,
    comparisons: Sequence[Comparison],
    found: Mapping[Goal, Answer | None],
) -> str | None:
    """What was found of the goal (see `finding`), or why what reached it is not returned."""
    selection = controller.selection
    if won.instead is not None:
        return won.instead
    if won.final is None:
        if ready.goal == "best":
            return None
        runs = [run for finalist in selection.finalists for run in finalist.runs.values()]
        ended = [run for run in runs if run.select is not None or run.error is not None]
        why = "not all that it is chosen by had ended"
        if not ended:
            why = "nothing was retrained with fresh seeds"
        elif len(ended) == len(runs) and not any(run.select is not None for run in runs):
            why = _all_failed(len(runs))
        return f"This is the best so far and not the {ready.goal}: {why}."
    compared, recipe = [stage.runs for stage in selection.baselines], won.final.recipe
    beside = best_baseline(compared)
    took_part = [verdict.runs.name for verdict in selection.verdicts()]
    named = {c.baseline: c for c in comparisons}
    return finding(
        ready.goal,
        found.get(ready.goal),
        None if beside is None else named.get(beside.name),
        # A trial may be the very recipe of a baseline.
        returned=next((r.name for r in compared if r.runs and r.recipe == recipe), None),
        by_trial=won.final.number is not None,
        head_alone=not trained_entries(Recipe.from_dict(dict(won.recipe))),
        highest=None if beside is None or beside.name in took_part else beside.name,
        unfinished=not all(f.whole for f in selection.finalists),
        margin=ready.arguments.margin / 100,
    )


def _all_failed(runs: int) -> str:
    only = "the only training with a fresh seed failed"
    return only if runs == 1 else f"all {runs} trainings with fresh seeds failed"


def _remarks(controller: Controller) -> list[str]:
    """What a user should know of the run: what ended early, what there was no time for, what failed."""
    strategy, selection = controller.strategy, controller.selection
    planned, effort = controller.planned, controller.effort
    told: list[str] = []
    failed = sum(record.state == "failed" for record in strategy.records())
    known = controller.interrupted or strategy.exhausted or strategy.out_of_time
    if failed and not known and strategy.launched < effort.trials:
        told.append(
            f"The search gave up after {strategy.launched} of {effort.trials} trials, as {failed} of them "
            f"failed ({(controller.first_error or 'see trials.jsonl').rstrip('.')})."
        )
    runs = [run for finalist in selection.finalists for run in finalist.runs.values()]
    errors = [run.error for run in runs if run.error is not None and run.select is None]
    if errors and len(errors) == len(runs):
        told.append(f"{_all_failed(len(runs)).capitalize()}: {errors[0]}")
    numbers = (effort.top, planned.top, "finalists"), (effort.seeds, planned.seeds, "fresh seeds")
    told += _rank_correlation(controller)
    told += [f"There was time for {had} of {all_} {what}." for had, all_, what in numbers if had < all_]
    compared = [stage.runs for stage in selection.baselines]
    if out := [stage.runs.name for stage in selection.baselines if stage.left_out]:
        told.append(f"There was no time for these baselines: {', '.join(out)}.")
    if without := [each.name for each in compared if each.failed]:
        told.append(f"Nothing is compared with {', '.join(without)}: all trainings of it failed.")
    if once := [stage.swept_once for stage in selection.baselines if stage.swept_once is not None]:
        told.append(f"There was no time to try {', '.join(once)} with a second seed: one seed alone chose.")
    told += [each.lost_seed for each in compared if each.lost_seed is not None]
    told += [
        f"{each.name} is not returned where another recipe has all of its seeds: "
        f"{len(each.runs) - len(each.good)} of its {len(each.runs)} failed."
        for each in compared
        if each.prior and each.complete and not each.whole
    ]
    goal, beside = selection.judge.goal, best_baseline(compared)
    if goal != "best" and beside is not None and any(v.untold for v in selection.verdicts()):
        told.append(
            f"The {selection.judge.select.rows:,} rows of select are too few to tell which recipes are "
            f"within the margin of {beside.name}. Give it more (--select-rows, or more data), or a wider "
            "--margin."
        )
    return told


def _rank_correlation(controller: Controller) -> list[str]:
    """How far estimates order the finalists as trainings of their own do; nothing of fewer than three."""
    ranks = {r.number: r.rank for r in controller.strategy.records() if r.state == "estimated"}
    pairs = [
        (rank, side.contender().select_mean)
        for side in controller.selection.finalists
        if side.good and (rank := ranks.get(side.number)) is not None
    ]
    estimated, trained = zip(*pairs, strict=True) if pairs else ((), ())
    if len(pairs) < 3 or len(set(estimated)) == 1 or len(set(trained)) == 1:
        return []
    found = float(spearmanr(estimated, trained).statistic)
    return [
        f"Estimates of {len(pairs)} finalists and what they score when they are trained by themselves have a "
        f"rank correlation of {found:+.2f} (Spearman's)."
    ]


def trained_steps(record: TrialRecord) -> int:
    """Steps that a trial was trained for, as far as a rung or the end shows."""
    return 0 if record.state == "duplicate" else max(map(int, record.rungs), default=0)


def course(records: Iterable[TrialRecord], limit: int) -> list[dict[str, float]]:
    """How the front of fully trained recipes grew: for each, in the order of the trials, the training steps
    spent until then (stopped trials included) and the hypervolume in (score, deployed parameters).

    The reference point is `limit` parameters and the lowest score of all, so the last value depends on the
    run: it shows a run's progress and compares no two runs.
    """
    ordered = sorted(records, key=lambda r: r.number or 0)
    full = [r for r in ordered if r.state == "complete" and r.score is not None and r.counts is not None]
    if not full:
        return []
    points = [(r.score or 0.0, float((r.counts or {})["deployed"])) for r in full]
    reference = (min(score for score, _ in points), float(limit) + 1.0)
    reached = dict(zip((r.number for r in full), hypervolume_course(points, reference), strict=True))
    steps, found = 0, []
    for record in ordered:
        steps += trained_steps(record)
        if record.number in reached:
            found.append({"trial": record.number or 0, "steps": steps, "hypervolume": reached[record.number]})
    return found


def _nothing(
    ready: Prepared, controller: Controller, records: list[TrialRecord], folder: RunFolder
) -> AutoPEFTError:
    """Why there is no result."""
    failed = [r for r in records if r.state == "failed"]
    if controller.interrupted:
        waiting = sum(record.state == "paused" for record in records)
        so_far = [f"{waiting} wait on a rung"] * (waiting > 0) + [f"{len(failed)} failed"] * bool(failed)
        told = f"; {', '.join(so_far)}" if so_far else ""
        return StoppedError(
            f"Interrupted before any trial was trained to the end{told}. Go on with: "
            f"{resume_command(folder.path, vars(ready.arguments))}"
        )
    cause = controller.first_error or next((r.error for r in failed if r.error), "the space gave no recipe")
    return AutoPEFTError(f"All {len(failed)} trials failed. The first failure: {cause}")
