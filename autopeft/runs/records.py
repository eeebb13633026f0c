"""The records of a run: one line for each finished piece of work, and the points of its front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, fields
from itertools import chain
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

__all__ = [
    "CountTable",
    "FrontPoint",
    "JobKind",
    "Points",
    "RecordState",
    "Records",
    "Sample",
    "TrialRecord",
    "left_out",
    "read_point",
    "read_record",
    "read_samples",
]

JobKind = Literal["trial", "confirm", "baseline", "test", "probe"]
RecordState = Literal[
    "complete", "estimated", "stopped", "paused", "running", "failed", "interrupted", "duplicate"
]
CountTable = dict[str, int | float]
T = TypeVar("T", "TrialRecord", "FrontPoint")
_LARGEST = 1e300
_DIGITS = 18
_MOST_SAMPLES, _LONGEST_TEXT = 24, 2000


@dataclass(frozen=True, config=ConfigDict(extra="ignore", allow_inf_nan=False))
class Sample:
    """An answer that a model wrote; its texts are cut to a bounded length.

    Attributes:
        split: whose row it answers.
        right: whether it is the expected one, up to white space.
        value: what the metric gives it, where it values single answers.
    """

    split: str
    row: int
    prompt: str
    expected: str
    written: str
    right: bool
    value: float | None = None


@dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class TrialRecord:
    """One finished piece of work, as it is written to `trials.jsonl` and `finals.jsonl`.

    Attributes:
        state: `complete`, `estimated` (scored by weights that it shares with others, not trained by itself),
            `stopped` (at a rung, before all steps), `paused` (the same while it may still go on), `running`
            (begun and on no rung yet; in no file), `failed`, `interrupted` (cut off when the whole run was
            stopped, which says nothing of the recipe), or `duplicate` (the score of an earlier trial was
            reused, nothing trained). Estimated and stopped trials are never compared with full runs.
        job: the job's id, of runs after the search.
        score: on *select* after all steps.
        rungs: step to score on *select*, for each rung that a trial reached.
        steps: that were trained.
        hash: canonical hash of the recipe, training included.
        duplicate_of: number of the trial whose score was reused.
        values: the sampler's raw parameters, before repair.
        kept: the scores come from an earlier run, nothing was trained for this one.
        pseudo_values: what groups of *test* rows contribute to the score there (see
            `Scorer.pseudo_values`); `None` where *test* was not scored.
        select_values: the same of *select* rows, of runs after the search.
        merits: step to what the recipe is ranked by there, higher is better, where that is not its score.
        metric: of what was scored on *select*, where it is another than the task's (see
            `Scorer.trial_metric`).
        precision: of the backbone, in runs after the search.
        measured: what it took: `step_time` and `latency` in seconds, `memory` and `file` in bytes, as far as
            they were measured.
        step_cost: of a trial, what a training step takes, predicted, where LoRA of the same budget on all
            layers takes 1; `None` where it was not predicted.
        samples: of a run after the search a handful of the answers that its model wrote.
        by_task: of a set of tasks, split to task to score, each in the task's own metric (the manifest's kind
            of task names it); `scores` has their mean.
    """

    kind: JobKind
    label: str
    state: RecordState
    recipe: Mapping[str, Any] = field(repr=False)
    number: int | None = None
    seed: int | None = None
    steps: int | None = None
    hash: str = ""
    counts: CountTable | None = None
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    train_loss: float | None = None
    error: str | None = None
    failure: str | None = None
    duplicate_of: int | None = None
    values: Mapping[str, Any] | None = field(default=None, repr=False)
    worker: str = ""
    rungs: Mapping[str, float] = field(default_factory=dict)
    job: str = ""
    kept: bool = False
    pseudo_values: list[float] | None = field(default=None, repr=False)
    select_values: list[float] | None = field(default=None, repr=False)
    merits: Mapping[str, float] = field(default_factory=dict, repr=False)
    metric: str | None = None
    precision: str = "fp32"
    measured: dict[str, int | float] | None = field(default=None, repr=False)
    step_cost: float | None = None
    samples: list[Sample] | None = field(default=None, repr=False)
    by_task: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    @property
    def deployed(self) -> int | float | None:
        """Deployed parameters."""
        return (self.counts or {}).get("deployed")

    @property
    def rank(self) -> float | None:
        """The rank of the recipe, higher is better: its merit after all steps, else its score."""
        return None if self.score is None else self.merits.get(str(self.steps), self.score)

    @property
    def share(self) -> int | float | None:
        """Deployed parameters as a share of the backbone's."""
        return (self.counts or {}).get("share")


@dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class FrontPoint:
    """A trained recipe that no other beats in both size and score."""

    number: int
    deployed: int
    share: float
    score: float
    hash: str
    name: str


# Files are read without conversions: the text "7" is no number there.
_STRICT = ConfigDict(extra="ignore", strict=True)


@dataclass(frozen=True, config=_STRICT)
class _RecordLine(TrialRecord):
    """A record as a file has to have it."""


@dataclass(frozen=True, config=ConfigDict(extra="ignore", strict=True, allow_inf_nan=False))
class _SampleLine(Sample):
    """A sample as a file has to have it."""


@dataclass(frozen=True, config=_STRICT)
class _PointLine(FrontPoint):
    """A point as a file has to have it."""


def read_record(line: Any) -> TrialRecord:
    """A line of `trials.jsonl` or `finals.jsonl`. Keys that this version does not know are left out, and so
    are scores that JSON could not hold (`null`).

    Raises:
        ValueError: it is no record; the message names the first field that is wrong. Numbers are finite, and
            the steps of rungs are digits.
    """
    if isinstance(line, dict):
        scores = {k: line[k] for k in ("scores", "rungs", "merits") if isinstance(line.get(k), dict)}
        line = line | {k: {n: v for n, v in table.items() if v is not None} for k, table in scores.items()}
        line["samples"] = list(read_samples(line.get("samples"))) or None
    record = _read(_RecordLine, TrialRecord, line, "record of a run")
    if not all(abs(number) < _LARGEST for number in _numbers(record)):
        raise ValueError("no record of a run: a number is not finite")
    if not all(
        step.isascii() and step.isdigit() and len(step) <= _DIGITS for step in (*record.rungs, *record.merits)
    ):
        raise ValueError("no record of a run: rungs: a step is not a number")
    return record


def read_samples(value: Any) -> tuple[Sample, ...]:
    """The samples of a list, as far as they are some; texts that are too long are cut, and no more than two
    dozen are taken."""
    found = []
    for item in value[:_MOST_SAMPLES] if isinstance(value, list) else ():
        try:
            texts = {k: v[:_LONGEST_TEXT] for k, v in item.items() if isinstance(v, str)}
            _SampleLine(**{**item, **texts})
            found.append(Sample(**{**item, **texts}))
        except (AttributeError, TypeError, ValidationError):
            continue
    return tuple(found)


def read_point(line: Any) -> FrontPoint:
    """A point of `front.json`.

    Raises:
        ValueError: it is none; the message names the first field that is wrong.
    """
    point = _read(_PointLine, FrontPoint, line, "point of a front")
    if not all(math.isfinite(number) for number in (point.share, point.score)):
        raise ValueError("no point of a front: a number is not finite")
    return point


def _read(strict: Callable[..., Any], cls: type[T], line: Any, what: str) -> T:
    if not isinstance(line, dict):
        raise ValueError(f"no {what}: it is no table")
    known = {name: line[name] for name in (f.name for f in fields(cls)) if name in line}
    try:
        strict(**known)
        return cls(**known)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"no {what}: {where}: {first['msg']}") from error


def _numbers(record: TrialRecord) -> Iterator[int | float]:
    r = record
    single = (r.number, r.seed, r.steps, r.score, r.seconds, r.train_loss, r.duplicate_of, r.step_cost)
    yield from (value for value in single if value is not None)
    tables = ((r.counts or {}), r.scores, r.rungs, r.merits, (r.measured or {}), *r.by_task.values())
    yield from chain.from_iterable(table.values() for table in tables)


@plain_dataclass(frozen=True)
class Records:
    """The records of a file in its order.

    Attributes:
        damaged: how many of its lines were none.
        problem: one sentence on these; `None` without any.
    """

    records: tuple[TrialRecord, ...] = ()
    damaged: int = 0
    problem: str | None = None


@plain_dataclass(frozen=True)
class Points:
    """The Pareto front by size, and one sentence on what in its file was no point."""

    points: tuple[FrontPoint, ...] = ()
    problem: str | None = None


def left_out(count: int, what: str, one: str, several: str, file: str) -> str | None:
    """One sentence on what could not be read; `None` where there is nothing."""
    if not count:
        return None
    if count == 1:
        return f"One {what} of {file} is not {one}: it is left out."
    return f"{count:,} {what}s of {file} are not {several}: they are left out."
