"""What a search found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autopeft.display import box, folded, number, percent, short, size, table
from autopeft.display import mean_sd as mean_sd_text
from autopeft.recipe import Recipe
from autopeft.resources import Limits
from autopeft.runs.records import CountTable, Sample, TrialRecord
from autopeft.search.core.goals import Goal
from autopeft.search.optimization.pareto import FrontPoint
from autopeft.search.selection.answers import Answer
from autopeft.search.selection.contender import Contender, FreshScores
from autopeft.search.selection.resource_use import ResourceUse
from autopeft.search.selection.significance import Comparison, SelectionBias
from autopeft.tasks.summary import Constant

__all__ = ["SearchResult"]


@dataclass(frozen=True)
class SearchResult(FreshScores):
    """What a search found; the same is in its run folder.

    Attributes:
        winner: the best recipe inside the budget.
        counts: its four counts and shares.
        number: its trial; `None` where it is a candidate of a baseline.
        origin: what it is: a trial, or the baseline's name.
        goal: which recipe was to win.
        finding: what was found of the goal, in a sentence, or why what reached it is not returned; `None`
            where the goal is the best hybrid and one was found.
        answers: the best, the smallest and the cheapest of what was confirmed, `None` where nothing is known
            that could tell.
        select, test: its scores with fresh seeds; empty where they were not measured.
        search_score: what it scored in the search itself, with the search's seed; NaN of a baseline.
        samples: of the answers that the winner wrote, to rows of *test*, or of *select* where it is a
            baseline that an earlier search had tested; none where its kind of task writes nothing.
        trial_metric: of all scores on *select*, where it is another than `metric`: of `search_score`, of the
            trials, of the front, and of `select`.
        confirmed: whether it was retrained with fresh seeds.
        finalists: how many recipes were retrained, of those that the search found: they have a score with a
            fresh seed.
        baselines: at the same budget, trained the same way, with fresh seeds.
        front: deployed parameters against the score on *select*.
        trials: every trial.
        steps: training steps of the search, rungs included, without finals.
        hypervolume: how the front grew, trial by trial (see `autopeft.search.controller.finish`).
        comparisons: the winner against each baseline on *test*, with intervals.
        bias: how much better the winner looks on *select*, which chose it, than on *test*.
        constant: what the same answer for every row scores (the majority baseline, or the mean).
        over_constant: the winner against that answer on *test*, with an interval.
        remarks: what limits what the scores can say, a sentence each.
        taken: what the winner and each baseline take of the machine, predicted and measured.
        further_task: of a set of tasks, the deployed parameters that one more task adds to `winner` and to
            each baseline, by name.
        within: the limits that the search had beside its budget.
        interrupted, exhausted, out_of_time: why it ended before the planned number of trials, if it did.
        notice: one line where the data stand in for others.
        precision: of the backbone under the weights that are kept, `fp32` or `bf16`.
    """

    winner: Recipe
    counts: CountTable
    number: int | None
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
    steps: int = 0
    hypervolume: tuple[dict[str, float], ...] = field(default=(), repr=False)
    comparisons: tuple[Comparison, ...] = ()
    bias: SelectionBias | None = None
    constant: Constant | None = None
    over_constant: Comparison | None = None
    remarks: tuple[str, ...] = ()
    taken: tuple[ResourceUse, ...] = ()
    further_task: Mapping[str, int] = field(default_factory=dict)
    within: Limits = Limits()  # noqa: RUF009 (frozen)
    origin: str = ""
    goal: Goal = "best"
    finding: str | None = None
    answers: Mapping[Goal, Answer | None] = field(default_factory=dict, repr=False)
    trial_metric: str | None = None
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    precision: str = "fp32"
    finalists: int = 0

    @property
    def headline(self) -> str:
        """The metric and the winner's score: on *test*, or on *select* where *test* was not touched."""
        if self.test:
            return f"{self.metric} {mean_sd_text(self.test)} on test"
        return f"{self.trial_metric or self.metric} {mean_sd_text(self.on_select)} on select"

    @property
    def on_select(self) -> tuple[float, ...]:
        """Its scores on *select*: with fresh seeds, else that of the search."""
        return self.select or (self.search_score,)

    @property
    def headers(self) -> tuple[str, ...]:
        """Of `rows`. Where *select* is scored by a metric of its own, that stands there."""
        select = "select" if self.trial_metric is None else f"{self.trial_metric} on select"
        return ("hybrid", "deployed", "share", select, "test")

    def found(self) -> list[str]:
        """What was found of the goal, then the answer to each goal, a sentence each."""
        told = [] if self.finding is None else [self.finding]
        return [*told, *(answer.sentence() for answer in self.answers.values() if answer is not None)]

    def resource_sentences(self) -> list[str]:
        """What was predicted and measured of what is limited, for the winner and each baseline."""
        return [said for one in self.taken if (said := one.sentence(self.within))]

    def rows(self) -> list[tuple[str, ...]]:
        """The winner, the baselines and the same answer for every row as texts: name, deployed parameters,
        their share, and mean ± sd over fresh seeds on *select* and *test*."""
        own = ("winner", self.counts, self.on_select, self.test)
        measured = [own, *((b.name, b.counts, b.select, b.test) for b in self.baselines)]
        rows: list[tuple[str, ...]] = [
            (
                name,
                number(counts.get("deployed")),
                percent(counts.get("share")),
                mean_sd_text(select),
                mean_sd_text(test),
            )
            for name, counts, select, test in measured
        ]
        return [*rows, *([self.constant.row()] if self.constant else [])]

    def __repr__(self) -> str:
        parameters = size(self.counts.get("deployed"), self.counts.get("share"))
        state = f"{short(self.origin)}{', interrupted' if self.interrupted else ''}, run {short(self.run)}"
        return f"SearchResult({short(self.winner.name)!r}: {self.headline}, {parameters}, {state})"

    def _repr_html_(self) -> str:
        """A small box for notebooks: the winner beside what it is compared with, and its recipe."""
        headers = ("", *self.headers[1:])
        compared = [c.sentence() for c in (*self.comparisons, self.over_constant) if c is not None]
        sentences = (*self.found(), *compared, *self.remarks)
        said = [(sentence,) for sentence in sentences]
        return box(
            self.winner.name,
            table(headers, self.rows(), right=range(1, len(headers))),
            table((), said) if said else "",
            folded("the winner as YAML", self.winner.to_yaml()),
            note=f"{self.winner.brief}: {self.headline}; {self.origin}, run {self.run}",
        )

    def to_dict(self) -> dict[str, Any]:
        """The outcome in numbers, JSON-able; trials and front are in files of their own."""
        skipped = {
            *("winner", "baselines", "front", "trials", "comparisons", "bias", "constant", "over_constant"),
            *("taken", "within", "answers", "samples", "further_task"),
        }
        compared = [{**asdict(c), "text": c.sentence()} for c in self.comparisons]
        constant = self.over_constant
        over = None if constant is None else {**asdict(constant), "text": constant.sentence()}
        baselines = []
        for b in self.baselines:
            means = {k: getattr(b, k) for k in ("select_mean", "select_sd", "test_mean", "test_sd")}
            shown = {k: v for k, v in vars(b).items() if k not in ("parts", "measured")}
            baselines.append({**shown, **means, "further_task": self.further_task.get(b.name)})
        resources = [
            {
                "name": one.name,
                "predicted": one.predicted.to_dict(),
                "measured": one.measured.to_dict(),
                "text": one.sentence(self.within) or None,
            }
            for one in self.taken
        ]
        data: dict[str, Any] = {k: v for k, v in vars(self).items() if k not in skipped}
        data["run"] = str(self.run)
        data.update(
            select_metric=self.trial_metric,
            recipe=self.winner.to_dict(),
            select_mean=self.select_mean,
            select_sd=self.select_sd,
            test_mean=self.test_mean,
            test_sd=self.test_sd,
            answers={goal: None if a is None else a.to_dict() for goal, a in self.answers.items()},
            comparisons=compared,
            over_constant=over,
            further_task=self.further_task.get("winner"),
            selection_bias=None if self.bias is None else self.bias.select - self.bias.test,
            selection_bias_text=None if self.bias is None else self.bias.sentence(),
            baselines=baselines,
            resources=resources,
            resource_limits=self.within.to_dict(),
            constant=None if self.constant is None else self.constant.to_dict(),
            samples=[asdict(sample) for sample in self.samples],
            trials={
                state: sum(t.state == state for t in self.trials)
                for state in (
                    *("complete", "estimated", "stopped", "paused", "failed", "interrupted", "duplicate"),
                )
            },
        )
        return data
