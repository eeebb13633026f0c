"""What a run folder holds, as far as it can be read. What cannot is named, and the rest still shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from autopeft.errors import UsageError
from autopeft.report.html.values import mapping, numbers, real, shown, whole
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.optimization.pareto import pareto_front
from autopeft.search.strategies.registry import DEFAULT

__all__ = ["Run", "Scored", "State", "read_run"]

State = Literal["finished", "interrupted", "unfinished"]
T = TypeVar("T")


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
        trials, finals: the records, tables of unknown content.
        front: points with `number`, `deployed` and `score`, by size.
        problems: what could not be read, one sentence each.
    """

    folder: RunFolder
    name: str
    state: State
    fixed: bool
    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    trials: tuple[Mapping[str, Any], ...]
    finals: tuple[Mapping[str, Any], ...]
    front: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def metric(self) -> str:
        data = mapping(self.manifest.get("data"))
        return shown(self.result.get("metric") or data.get("metric") or "score", 60)

    @property
    def strategy(self) -> str:
        """What turned the space into candidates; runs from before there were several had the default."""
        return shown(mapping(self.manifest.get("arguments")).get("strategy") or DEFAULT, 60)

    @property
    def complete(self) -> list[Mapping[str, Any]]:
        """Trials that were trained to the end and scored; neither stopped nor duplicates nor failed."""
        return [r for r in self.trials if r.get("state") == "complete" and real(r.get("score")) is not None]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best complete trial; of equal scores the smaller, then the earlier one."""

        def rank(r: Mapping[str, Any]) -> tuple[float, float, float]:
            size = real(mapping(r.get("counts")).get("deployed")) or 0.0
            return (-(real(r.get("score")) or 0.0), size, real(r.get("number")) or 0.0)

        return min(self.complete, key=rank, default=None)

    @property
    def winner(self) -> Scored | None:
        """The winner's scores, once there is a result."""
        return _scored(self.result, "winner") if self.result else None

    @property
    def baselines(self) -> list[Scored]:
        found = self.result.get("baselines")
        rows = found if isinstance(found, list) else []
        return [_scored(r, shown(r.get("name"), 120)) for r in rows if isinstance(r, Mapping)]

    @property
    def recipe(self) -> Any:
        """The winner's recipe as data, or that of the best trial so far; `None` before there is one."""
        return self.result.get("recipe") or (self.best or {}).get("recipe")


def _scored(row: Mapping[str, Any], name: str) -> Scored:
    counts = mapping(row.get("counts"))
    select, test = numbers(row.get("select")), numbers(row.get("test"))
    # A fixed recipe's result has means of its one seed alone.
    for scores, key in ((select, "select_mean"), (test, "test_mean")):
        mean = real(row.get(key))
        if not scores and mean is not None:
            scores.append(mean)
    return Scored(name, tuple(select), tuple(test), real(counts.get("deployed")), real(counts.get("share")))


def read_run(folder: RunFolder) -> Run:
    """Read what is there. Missing files are no problem: a run that was not finished lacks some.

    Raises:
        UsageError: the manifest is missing or damaged, so that it is no run.
    """
    manifest = folder.manifest()
    problems: list[str] = []

    def tolerant(name: str, read: Callable[[], T], empty: T) -> T:
        if not (folder.path / name).exists():
            return empty
        try:
            return read()
        except UsageError as error:
            problems.append(shown(error))
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}.")
        return empty

    none: list[dict[str, Any]] = []
    result: dict[str, Any] = tolerant("result.json", folder.result, {})
    trials = tolerant("trials.jsonl", lambda: folder.lines("trials.jsonl"), none)
    finals = tolerant("finals.jsonl", lambda: folder.lines("finals.jsonl"), none)
    front = tolerant("front.json", folder.front, none)
    state: State = "unfinished"
    if result:
        state = "interrupted" if result.get("interrupted") else "finished"
    return Run(
        folder=folder,
        name=shown(folder.name, 200),
        state=state,
        fixed=result.get("kind") == "train" or manifest.get("kind") == "train",
        manifest=manifest,
        result=result,
        trials=tuple(trials),
        finals=tuple(finals),
        front=tuple(_points(front) or _front_of(trials)),
        problems=tuple(problems),
    )


def _points(front: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    keys = ("deployed", "score")
    return [p for p in front if all(real(p.get(k)) is not None for k in keys)]


def _front_of(trials: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """The front of a run that has not written one yet."""
    records = []
    for r in trials:
        counts, score = mapping(r.get("counts")), real(r.get("score"))
        deployed, share = real(counts.get("deployed")), real(counts.get("share"))
        if r.get("state") != "complete" or score is None or deployed is None:
            continue
        recipe = mapping(r.get("recipe"))
        table: dict[str, int | float] = {"deployed": int(deployed), "share": share or 0.0}
        records.append(
            TrialRecord("trial", "", "complete", recipe, whole(r.get("number")), counts=table, score=score)
        )
    return [vars(point) for point in pareto_front(records)]
