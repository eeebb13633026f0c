"""What a run folder holds, as far as it can be read. What cannot is named, and the rest still shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autopeft.foreign import table_of
from autopeft.report.html.values import shown
from autopeft.runs.documents import Manifest, Measured, Result, read_manifest, read_result
from autopeft.runs.folder import RunFolder, read_parts
from autopeft.runs.records import FrontPoint, TrialRecord
from autopeft.search.optimization.pareto import best_first, pareto_front
from autopeft.search.strategies.registry import DEFAULT

__all__ = ["Run", "Scored", "State", "read_run"]

State = Literal["finished", "interrupted", "unfinished", "running"]


@dataclass(frozen=True)
class Scored:
    """The winner or a baseline: scores of each seed on *select* and *test*, and deployed parameters."""

    name: str
    select: tuple[float, ...]
    test: tuple[float, ...]
    deployed: float | None
    share: float | None


@dataclass(frozen=True)
class Run:
    """A run as it was read.

    Attributes:
        name: the folder's name.
        fixed: whether it trained a fixed recipe instead of searching.
        manifest: as it stands in the file; `about` is what it says.
        result: `None` before there is one.
        front: by size.
        problems: what could not be read, one sentence each.
        metric: what *test* is scored by; `trial_metric` scores the trials and the front, and `select_metric`
            the runs with fresh seeds on *select*.
        strategy: what turned the space into candidates.
        complete: trials that were trained to the end and scored; neither stopped nor duplicates nor failed.
        best: the best complete trial; of equal scores the smaller, then the earlier one.
        winner: its scores, once there is a result.
        constant: what the same answer for every row scores.
        recipe: the winner's, or that of the best trial so far, as data; `None` before there is one.
    """

    folder: RunFolder
    name: str
    state: State
    fixed: bool
    manifest: Mapping[str, Any]
    about: Manifest
    result: Result | None
    trials: tuple[TrialRecord, ...]
    finals: tuple[TrialRecord, ...]
    front: tuple[FrontPoint, ...]
    problems: tuple[str, ...]
    metric: str
    trial_metric: str
    select_metric: str
    strategy: str
    complete: tuple[TrialRecord, ...]
    best: TrialRecord | None
    winner: Scored | None
    baselines: tuple[Scored, ...]
    constant: Scored | None
    recipe: Any


def _scored(found: Measured, name: str) -> Scored:
    # A fixed recipe's result has means of its one seed alone.
    select = found.select or tuple(v for v in (found.select_mean,) if v is not None)
    test = found.test or tuple(v for v in (found.test_mean,) if v is not None)
    return Scored(name, select, test, found.counts.deployed, found.counts.share)


def read_run(folder: RunFolder) -> Run:
    """Read what is there. Missing files are no problem: a run that was not finished lacks some.

    Raises:
        UsageError: the manifest is missing or damaged, so that it is no run.
    """
    manifest, parts = folder.manifest(), read_parts(folder)
    about, result = read_manifest(manifest), read_result(parts.result) if parts.result else None
    state: State = "unfinished"
    if result is not None:
        state = "interrupted" if result.interrupted else "finished"
    if folder.running:
        state = "running"
    metric = shown((result.metric if result else None) or about.data.metric or "score", 60)
    best = next(iter(best_first(parts.trials)), None)
    constant = result.constant if result else None
    # Runs from before there were several strategies had the default.
    strategy = table_of(manifest.get("arguments")).get("strategy") or DEFAULT
    return Run(
        folder=folder,
        name=shown(folder.name, 200),
        state=state,
        fixed="train" in (about.kind, result.kind if result else None),
        manifest=manifest,
        about=about,
        result=result,
        trials=parts.trials,
        finals=parts.finals,
        # A run that is not over has not written one yet.
        front=parts.front or tuple(pareto_front(parts.trials)),
        problems=tuple(map(shown, parts.problems)),
        metric=metric,
        trial_metric=shown(about.trial_metric or metric, 60),
        select_metric=shown((result.select_metric if result else None) or metric, 60),
        strategy=shown(strategy, 60),
        complete=tuple(r for r in parts.trials if r.state == "complete" and r.score is not None),
        best=best,
        winner=_scored(result, "winner") if result else None,
        baselines=tuple(_scored(b, shown(b.name, 120)) for b in (result.baselines if result else ())),
        constant=None if constant is None else _scored(constant, shown(constant.name, 120)),
        recipe=(result.recipe if result else None) or (best.recipe if best else None),
    )
