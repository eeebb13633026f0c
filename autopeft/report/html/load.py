"""What a run folder holds, as far as it can be read. What cannot is named, and the rest still shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.report.html.values import mapping, shown
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
    problems: tuple[str, ...] = field(default=())

    @property
    def metric(self) -> str:
        found = (self.result.metric if self.result else None) or self.about.data.metric
        return shown(found or "score", 60)

    @property
    def trial_metric(self) -> str:
        """What the trials and the front are scored by."""
        return shown(self.about.trial_metric or self.metric, 60)

    @property
    def select_metric(self) -> str:
        """What runs with fresh seeds are scored by on *select*."""
        return shown((self.result.select_metric if self.result else None) or self.metric, 60)

    @property
    def strategy(self) -> str:
        """What turned the space into candidates; runs from before there were several had the default."""
        return shown(mapping(self.manifest.get("arguments")).get("strategy") or DEFAULT, 60)

    @property
    def complete(self) -> list[TrialRecord]:
        """Trials that were trained to the end and scored; neither stopped nor duplicates nor failed."""
        return [r for r in self.trials if r.state == "complete" and r.score is not None]

    @property
    def best(self) -> TrialRecord | None:
        """The best complete trial; of equal scores the smaller, then the earlier one."""
        return next(iter(best_first(self.trials)), None)

    @property
    def winner(self) -> Scored | None:
        """The winner's scores, once there is a result."""
        return _scored(self.result, "winner") if self.result else None

    @property
    def baselines(self) -> list[Scored]:
        return [_scored(b, shown(b.name, 120)) for b in (self.result.baselines if self.result else ())]

    @property
    def constant(self) -> Scored | None:
        """What the same answer for every row scores."""
        found = self.result.constant if self.result else None
        return _scored(found, shown(found.name, 120)) if found is not None else None

    @property
    def recipe(self) -> Any:
        """The winner's recipe as data, or that of the best trial so far; `None` before there is one."""
        return (self.result.recipe if self.result else None) or (self.best.recipe if self.best else None)


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
    )
