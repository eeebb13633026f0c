"""The end of a search in words and tables, and what a dry run found."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.graph import build_graph
from autopeft.recipe.told import input_lines
from autopeft.report.sheet import Sheet
from autopeft.report.text import counted, duration, limits_text, number, percent, size
from autopeft.resources.calibration import Calibration
from autopeft.search.api import DryRun, Sample, SearchResult
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.significance import uncorrected

__all__ = ["dry_run_data", "dry_run_sheets", "ending", "outcome_sheet", "winner_text"]

_GIB = 1 << 30


def outcome_sheet(result: SearchResult, data: Mapping[str, Any], budget: str) -> Sheet:
    """The winner beside the baselines: deployed share, select and test as mean ± sd over fresh seeds.

    `data` is the run's description of its task (`Task.describe()`): the table says which data it shows.
    """
    headers = result.headers
    stands_for = (data.get("source") or {}).get("stand_in_for")
    notes = []
    if stands_for:
        notes.append(f"These figures are not comparable with those of {stands_for}.")

    # What the winner's scores were measured with, and which metric scores what.
    if result.test:
        notes.append(
            f"Budget {budget}; higher is better; {counted(len(result.test), 'fresh seed')}, all trained "
            "alike; test touched once."
        )
    elif result.select:
        fresh = "one fresh seed" if len(result.select) == 1 else f"{len(result.select)} fresh seeds"
        notes.append(f"Retrained with {fresh}, and scored on select; the winner has no score on test.")
    else:
        notes.append(
            "No winner was confirmed with fresh seeds: the score is the search's own, on select, none on "
            "test."
        )
    notes += _stand_in(result.metric, result.trial_metric)

    # What was found, each comparison in a sentence, what the intervals do not say, and the selection bias.
    notes += result.found()
    notes += [c.sentence() for c in (*result.comparisons, result.over_constant) if c is not None]
    warning = uncorrected(result.comparisons)
    if warning:
        notes.append(warning)
    if result.bias:
        notes.append(result.bias.sentence())
    if result.within:
        notes += [f"Limits: {result.within}.", *result.resource_sentences()]
    if result.constant is not None:
        on_select = statistics.fmean(result.on_select)
        scored = (on_select, "select") if result.test_mean is None else (result.test_mean, "test")
        unbeaten = result.constant.unbeaten(*scored, "The winner")
        notes += [unbeaten] if unbeaten else []
    notes += result.remarks
    instead = f", the stand-in for {stands_for}" if stands_for else ""
    return Sheet(
        headers,
        tuple(result.rows()),
        title=f"{data.get('name')}{instead}: {result.metric}, mean ± sd",
        notes=tuple(notes),
        right=frozenset(headers[1:]),
        fold=frozenset({"hybrid"}),
        drop=("share",),
    )


def _stand_in(metric: str, trial_metric: str | None) -> list[str]:
    """What scores what, where *select* is scored by another metric than *test*."""
    if trial_metric is None:
        return []
    return [
        f"On select, which chooses, everything is scored by {trial_metric}, on test by {metric}, which takes "
        "answers that are written. The two are never compared."
    ]


def winner_text(result: SearchResult, drawing: str) -> str:
    """The winner, what it starts from, the `drawing` of its graph, and its recipe."""
    winner, parameters = result.winner, size(result.counts["deployed"], result.counts["share"])
    return "\n".join(
        (
            f"Winner: {result.origin}, {winner.name!r} ({winner.brief}), {parameters}",
            *input_lines(winner),
            "",
            drawing.rstrip("\n"),
            "",
            winner.to_yaml().rstrip("\n"),
        )
    )


def ending(result: SearchResult) -> str:
    """Why the search ended early, if it did, and how long it took."""
    states = Counter(t.state for t in result.trials)
    counts = {
        "estimated": states["estimated"],
        "stopped early": states["stopped"] + states["paused"],
        "failed": states["failed"],
        "interrupted": states["interrupted"],
    }
    why = [
        text
        for flag, text in (
            (result.interrupted, "interrupted: this is the best so far"),
            (result.exhausted, "the space has no further recipe under this budget"),
            (result.out_of_time, "out of time"),
        )
        if flag
    ]
    beside = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return f"{states['complete']} trials{beside} in {duration(result.seconds)}" + (
        f" ({'; '.join(why)})" if why else ""
    )


def dry_run_sheets(found: DryRun, size: str) -> list[Sheet]:
    """What a search would do: size of the space, feasible share, samples with counts, time and memory."""
    ready = found.prepared
    effort, estimate = ready.effort, found.estimate

    def baseline(b: Baseline) -> str:
        return f"{b.name} ({counted(b.sweep_runs + b.fresh_runs(effort.seeds), 'run')})"

    facts: list[tuple[str, str]] = [
        ("task", f"{ready.task.name} ({ready.task.metric})"),
        *(("scored by", line) for line in _stand_in(ready.task.metric, ready.trial_metric)),
        ("data", ready.task.source.notice or f"{ready.task.source.name} ({ready.task.source.origin})"),
        *ready.summary.facts,
        ("backbone", f"{ready.model_name}: {ready.spec.parameters:,} parameters"),
        ("budget", f"{ready.budget}: {limits_text(ready.limits)} deployed parameters"),
        *([("limits", str(ready.within))] if ready.within else []),
        *((f"input {name}", str(item)) for name, item in ready.space.inputs.items()),
        *_accuracy(ready.predictor.calibration),
        ("space", f"{ready.space_name}: {size}"),
        ("fit without repair", percent(found.feasible, 1)),
        (
            "trials",
            f"{ready.outline}, then {counted(effort.top, 'finalist')} with {counted(effort.seeds, 'seed')}",
        ),
        ("baselines", ", ".join(map(baseline, found.baselines)) or "none fits"),
        ("time, about", duration(estimate.seconds)),
        ("memory, about", f"{estimate.memory / _GIB:.1f} GiB"),
    ]
    remarks = ready.summary.remarks
    return [
        Sheet(
            ("fact", "value"),
            tuple(facts),
            title="Dry run: nothing was started",
            notes=remarks,
            fold=frozenset({"value"}),
        ),
        *([_samples(found.first, "Recipes that it begins with")] if found.first else []),
        _samples(found.samples, "Recipes that it could try"),
    ]


def _accuracy(calibration: Calibration | None) -> list[tuple[str, str]]:
    """What is predicted, and how far the predictions of what was measured on this machine were off."""
    if calibration is None:
        return []
    memory = calibration.memory
    errors = {
        "step time": calibration.step_time.error,
        "latency": calibration.latency.error,
        "memory above the bare process": None if memory is None else memory.error,
    }
    said = [
        f"{name} {percent(error.median, 0)} (worst {percent(error.worst, 0)})"
        for name, error in errors.items()
        if error is not None
    ]
    off = [("predictions are off by, in the median", ", ".join(said))] if said else []
    return [("predictions are for", f"trainings in {calibration.precision} on this machine"), *off]


def _samples(samples: Sequence[Sample], title: str) -> Sheet:
    rows = tuple(
        (
            str(i + 1),
            s.recipe.brief,
            number(s.counts.deployed),
            percent(s.counts.share),
            number(s.counts.trained),
        )
        for i, s in enumerate(samples)
    )
    headers = ("sample", "methods", "deployed", "share", "trained")
    return Sheet(
        headers,
        rows,
        title=title,
        right=frozenset({"deployed", "share", "trained"}),
        fold=frozenset({"methods"}),
        drop=("trained", "share"),
    )


def dry_run_data(found: DryRun) -> dict[str, Any]:
    """A dry run as data."""
    ready = found.prepared
    return {
        "manifest": ready.manifest(),
        "cardinality": found.cardinality,
        "feasible": found.feasible,
        "first": [{"recipe": s.recipe.to_dict(), "counts": s.counts.to_dict()} for s in found.first],
        "samples": [
            {
                "recipe": s.recipe.to_dict(),
                "counts": s.counts.to_dict(),
                "predicted": ready.predictor(build_graph(s.recipe, ready.spec), everything=True).to_dict(),
            }
            for s in found.samples
        ],
        "limits": ready.within.to_dict(),
        "baselines": [
            {
                "name": b.name,
                "counts": dict(b.counts),
                "runs": b.sweep_runs + b.fresh_runs(ready.effort.seeds),
                "tried": list(dict.fromkeys(b.titles)),
            }
            for b in found.baselines
        ],
        "seconds": found.estimate.seconds,
        "trial_seconds": found.estimate.trial_seconds,
        "memory_bytes": found.estimate.memory,
    }
