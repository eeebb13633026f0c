"""The study of a search: proposals and results in a journal file; repair, duplicates, rungs and failures.

The journal is the only source of truth: what is not in it did not happen. A proposal of the sampler is mapped
to a recipe, repaired into the budget and hashed; a recipe that was already scored is told its known score and
never trained again. The sampler sees the history through a view (`sampler_view`), with the parameters as it
proposed them and the score of the repaired recipe. A trial that has reached a rung is RUNNING in the journal
until it goes on to the end (COMPLETE) or the search ends without it (PRUNED).
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.errors import AutoPEFTError, DataError
from autopeft.recipe import Recipe
from autopeft.runs.records import CountTable, RecordState, TrialRecord
from autopeft.search.core.goals import COSTS, Cost
from autopeft.search.core.jobs import JobResult
from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.journal import (
    FIRST,
    FORMAT,
    NAME,
    PROPOSED,
    InUse,
    all_in_use,
    changes,
    check_values,
    open_journal,
    proposed,
)
from autopeft.search.optimization.pareto import best_first
from autopeft.search.optimization.sampler_view import DIRECTIONS, Observation, Point, ask, view_of
from autopeft.search.optimization.samplers import make_sampler
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.parameters import Parameter, every_point

if TYPE_CHECKING:
    from autopeft.search.space.candidate import Candidate

__all__ = ["Proposal", "SearchStudy"]

_NOT_ITS_FAULT = ("lost", "stopped")
_MODELLED, _SMALL = 10, 4096


@dataclass(frozen=True)
class Proposal:
    """A recipe inside the budget that was not scored before; `number` is its trial in the study."""

    number: int
    recipe: Mapping[str, Any]
    hash: str
    counts: CountTable


class SearchStudy:
    """Proposals and results of one search, in `journal`.

    Opening an existing journal goes on where it ended: trials that had reached a rung wait there, others
    that were running fail (their process is gone) and their points are proposed again, and the sampler's seed
    moves on by the number of trials, so that it does not replay.

    Args:
        journal: file of the Optuna journal; made if it does not exist. One process at a time may write it.
        parameters: the space's flat parameters.
        repair: maps the space's values to a recipe inside the budget; raises `AutoPEFTError` where none
            exists.
        rungs: steps at which trials are scored.
        objectives: 1 for the score, 2 for score and cost.
        cost: the second objective, which is minimised.
        first: values tried before the sampler's own, on a new study.
        in_use: tells which parameters had a part in a recipe; the journal leaves out the others.
        patience: proposals in a row that may be known already before the space counts as exhausted; those
            after the first ten are drawn at random, for samplers that settle on one point.

    Raises:
        DataError: the journal belongs to another space or to other objectives.
    """

    def __init__(
        self,
        journal: Path,
        parameters: Sequence[Parameter],
        repair: Callable[[dict[str, Any]], Candidate],
        *,
        sampler: str,
        seed: int,
        trials: int,
        rungs: Rungs,
        objectives: int = 1,
        cost: Cost = "deployed",
        first: Iterable[Mapping[str, Any]] = (),
        patience: int = 100,
        in_use: InUse = all_in_use,
    ) -> None:
        self._codec, self._repair, self._in_use = Codec(parameters), repair, in_use
        self._patience, self._trials, self._parameters = patience, trials, parameters
        self.rungs, self.objectives, self.cost = rungs, objectives, cost
        self._seen: list[Observation] = []
        self._records: dict[int, TrialRecord] = {}
        self._open: dict[int, TrialRecord] = {}
        self._known: dict[str, int] = {}
        self._duplicates: dict[int, list[int]] = {}
        self._fresh: list[int] = []
        self._storage = open_journal(journal)
        if self._storage.get_all_studies():  # `load_if_exists` would write a line first
            self.study = optuna.load_study(storage=self._storage, study_name=NAME)
        else:
            self.study = optuna.create_study(
                storage=self._storage, study_name=NAME, directions=DIRECTIONS[:objectives]
            )
        if len(self.study.directions) != objectives:
            raise DataError(
                f"This journal has {len(self.study.directions)} objectives and the search {objectives}."
            )
        if objectives == 2 and self.study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(["score", COSTS[cost]])
        self._study_id = self._storage.get_study_id_from_name(NAME)
        past = self.study.get_trials(deepcopy=False)
        if past and self.study.user_attrs.get("journal") != FORMAT:
            raise DataError(
                f"{str(journal)!r} is of another version of autopeft, and its search cannot go on. --from "
                f"{journal.parent} starts a new one from the trials that had ended."
            )
        if not past and FIRST not in self.study.user_attrs:  # one that ended before its first trial has them
            points = [dict(values) for values in first]
            self.study.set_user_attr("journal", FORMAT)
            self.study.set_user_attr("ordered", self._codec.ordered)
            self.study.set_user_attr("seed", seed)
            self.study.set_user_attr("sampler", sampler)
            self.study.set_user_attr(FIRST, points)  # the last: from here on the journal is begun

        # Trials of an earlier process: those that it left running have failed, and are proposed again.
        lost: dict[int, dict[str, Any]] = {}
        used: set[int] = set()
        for t in past:
            proposal, a = proposed(self._codec, t), t.user_attrs
            steps = set(map(int, a.get("rungs", {})))
            if not steps <= set(rungs.steps):
                raise DataError(
                    f"Trial {t.number} of this journal was scored after {max(steps)} steps, and the search "
                    f"scores after {', '.join(map(str, rungs.steps))}: they do not belong together."
                )
            used.add(a.get(FIRST, -1))
            lost.pop(a.get("again", -1), None)
            self._read(t)
            if t.state == TrialState.RUNNING and "rungs" not in a and "duplicate_of" not in a:
                error = "The process that ran this trial ended before it did."
                outcome = {"error": error, "failure": "stopped"}
                self._storage.set_trial_user_attr(t.number, "outcome", outcome)
                self._finish(t.number, TrialState.FAIL, None)
            record = self._records.get(t.number)
            if record is not None and record.failure in _NOT_ITS_FAULT:
                lost[t.number] = proposal
        for number in [n for n in self._duplicates if n in self._records]:
            self._tell_duplicates_of(self._records[number])
        begun_with = self.study.user_attrs.get(FIRST, [])
        for values in begun_with:
            check_values(self._codec, values, "A point to begin with")
        # Points to propose before the sampler's own, with the attributes of their trials.
        self._pending: deque[tuple[dict[str, Any], dict[str, Any]]] = deque(
            (values, {"again": number}) for number, values in lost.items()
        )
        self._pending += [(values, {FIRST: i}) for i, values in enumerate(begun_with) if i not in used]

        self._seed = seed + len(past)
        self._sampler = make_sampler(
            sampler,
            seed=self._seed,
            trials=trials,
            objectives=objectives,
            repaired=self._point,
            parameters=parameters,
        )

    def _read(self, t: FrozenTrial) -> TrialRecord:
        """Take in a trial as the journal has it now: what the sampler sees of it, its record and its hash."""
        record, a = self.as_record(t), t.user_attrs
        rungs = {int(step): score for step, score in {**record.rungs, **record.merits}.items()}
        if t.state == TrialState.COMPLETE:  # of a duplicate too
            rungs.setdefault(self.rungs.full, t.values[0])
        seen = Observation(
            self._codec.encode(a[PROPOSED]),
            a.get("point", {}),
            self.cost_of(record),
            rungs,
            failed=t.state == TrialState.FAIL or record.error is not None,
            hash=record.hash,
        )
        self._seen[t.number : t.number + 1] = [seen]
        if t.state == TrialState.RUNNING:
            self._open[t.number] = record
            if record.duplicate_of is not None:
                self._duplicates.setdefault(record.duplicate_of, []).append(t.number)
        else:
            self._open.pop(t.number, None)
            if "recipe" in a:
                self._records[t.number] = record
        if record.duplicate_of is None and record.hash:
            if record.failure not in _NOT_ITS_FAULT:
                self._known.setdefault(record.hash, t.number)
            elif self._known.get(record.hash) == t.number:
                del self._known[record.hash]
        return record

    @property
    def paused(self) -> dict[int, TrialRecord]:
        """Trials that wait on a rung, by number."""
        return {n: r for n, r in self._open.items() if r.rungs and r.state != "duplicate"}

    # Proposals
    # ----------------------------------------------------------------------------------------------------

    def propose(self) -> Proposal | None:
        """The next recipe to train, or `None` when the space holds nothing new: within `patience` tries, and
        at no point of a small space without ranges.

        Raises:
            AutoPEFTError: no recipe at all was found, as none could be repaired into the budget.
        """
        refused: AutoPEFTError | None = None
        for attempt in range(self._patience):
            if self._pending:
                point, come = self._pending.popleft()
                values, marks = dict(point), dict(come)
            else:
                modelled = attempt < min(_MODELLED, self._patience // 2)
                sampler = self._sampler if modelled else RandomSampler(seed=self._seed + len(self._seen))
                space, steps = self._codec.distributions, self.rungs.steps
                view = view_of(self._seen, space, steps, sampler, objectives=self.objectives)
                values, marks = self._codec.decode(ask(view, space)), {}
            try:
                repaired = self._repair(values)
            except AutoPEFTError as error:
                refused = error
                marks["outcome"] = {"error": str(error), "failure": "infeasible"}
                self._create(values, marks, TrialState.FAIL)
                continue
            number = self._known.get(repaired.hash)
            if number is None:
                return self._proposed(values, marks, repaired)

            # A known recipe gets the score at once, or when the trial that has it has one.
            marks["duplicate_of"] = number
            original, state, scores = self._records.get(number), TrialState.RUNNING, None
            if original is not None:
                state, scores, marks["outcome"] = self._outcome_of(original)
                if original.merits:
                    marks["merits"] = dict(original.merits)
            copied = self._create(values, marks, state, scores, repaired)
            if original is not None:
                self._fresh.append(copied)
        for values in every_point(self._parameters, _SMALL):
            with suppress(AutoPEFTError):
                repaired = self._repair(values)
                if repaired.hash not in self._known:
                    return self._proposed(values, {}, repaired)
        if refused is not None and not (self._records or self._open):
            raise refused
        return None

    def _proposed(self, values: Mapping[str, Any], marks: Mapping[str, Any], found: Candidate) -> Proposal:
        """A trial that begins."""
        number = self._create(values, marks, TrialState.RUNNING, None, found)
        return Proposal(number, found.recipe.to_dict(), found.hash, found.counts.to_dict())

    def _point(self, params: dict[str, Any]) -> Point | None:
        """A suggestion repaired, for samplers that look ahead; `None` where there is nothing to repair to."""
        try:
            found = self._repair(self._codec.decode(params))
        except AutoPEFTError:
            return None
        return Point(found.point, self.cost_of(found), found.hash)

    def _create(
        self,
        values: Mapping[str, Any],
        marks: Mapping[str, Any],
        state: TrialState,
        objectives: Sequence[float] | None = None,
        found: Candidate | None = None,
    ) -> int:
        """Write a new trial; returns its number.

        Args:
            values: what was proposed, before repair.
            marks: user attributes, beside those that describe the recipe of `found`.
            objectives: the objectives' values of a complete trial.
        """
        shown, attributes = dict(values), {PROPOSED: dict(values), **marks}
        if found is not None:
            point = dict(found.point)
            attributes |= {"recipe": found.recipe.to_dict(), "hash": found.hash, "point": point}
            attributes |= {"counts": found.counts.to_dict(), "repaired": changes(values, point)}
            if found.step_cost is not None:
                attributes["step_cost"] = found.step_cost
            names = self._in_use(point, Recipe.from_dict(attributes["recipe"]))
            shown = {name: point[name] for name in values if name in names}
        template = create_trial(
            state=state,
            values=objectives,
            params=shown,
            distributions={name: self._codec.recorded[name] for name in shown},
            user_attrs=attributes,
        )
        # A journal holds one study, so that its trials are known by their numbers.
        number: int = self._storage.create_new_trial(self._study_id, template)
        self._read(self._storage.get_trial(number))
        return number

    def _outcome_of(self, original: TrialRecord) -> tuple[TrialState, list[float] | None, dict[str, Any]]:
        outcome = {"error": original.error, "failure": original.failure}
        if original.state == "complete":
            scores = [original.score or 0.0, self.cost_of(original)]
            return TrialState.COMPLETE, scores[: self.objectives], outcome
        stopped = original.state == "stopped"
        return (TrialState.PRUNED if stopped else TrialState.FAIL), None, outcome

    def cost_of(self, recipe: TrialRecord | Candidate) -> float:
        """The second objective of a trial, or of a recipe that was not trained yet."""
        found: float | None = getattr(recipe, self.cost)
        return float(found or 0.0)

    # Results
    # ------------------------------------------------------------------------------------------------------

    def pause(self, number: int, step: int, result: JobResult) -> bool:
        """Store the score of a trial that waits on the rung at `step`; `False` where it is known already."""
        record = self._open.get(number)
        score = result.score
        if record is None or str(step) in record.rungs:
            return False
        if score is None or not math.isfinite(score):
            raise AutoPEFTError(f"Trial {number} paused at step {step} without a score.")
        rungs = {**record.rungs, str(step): score}
        seconds = record.seconds + result.seconds
        self._storage.set_trial_user_attr(number, "seconds", seconds)
        if self.objectives == 1:
            self._storage.set_trial_intermediate_value(number, step, score)
        if result.merit is not None:
            merits = {**record.merits, str(step): result.merit}
            self._storage.set_trial_user_attr(number, "merits", merits)
        if result.metric is not None:
            self._storage.set_trial_user_attr(number, "metric", result.metric)
        # Last: from here on the trial counts as paused.
        self._storage.set_trial_user_attr(number, "rungs", rungs)
        self._read(self._storage.get_trial(number))
        return True

    def record(self, number: int, result: JobResult) -> bool:
        """Store the result of a proposal; a second call for the same number changes nothing and returns
        `False`.

        A failed job and a score that is not finite become a failed trial.
        """
        if number not in self._open:
            return False
        score, error, failure = result.score, result.error, result.failure
        if error is None and (score is None or not math.isfinite(score)):
            error, failure = f"The score is not finite: {score}.", "non_finite"
        before = self._open[number]
        outcome = {
            "scores": {k: v for k, v in result.scores.items() if math.isfinite(v)},
            "seconds": before.seconds + result.seconds,
            "train_loss": result.train_loss if math.isfinite(result.train_loss or 0.0) else None,
            "worker": result.worker,
            "error": error,
            "failure": failure,
            "measured": dict(result.measured),
            "metric": result.metric,
        }
        if result.counts is not None:
            self._storage.set_trial_user_attr(number, "counts", result.counts)
        self._storage.set_trial_user_attr(number, "outcome", outcome)
        state, values = TrialState.FAIL, None
        if error is None and result.merit is not None:
            merits = {**before.merits, str(self.rungs.full): result.merit}
            self._storage.set_trial_user_attr(number, "merits", merits)
        if error is None:
            # The parameters that data-dependent methods left, rather than the bound that repair counted.
            ended = replace(before, score=score, counts=result.counts or before.counts)
            state, values = TrialState.COMPLETE, [score or 0.0, self.cost_of(ended)][: self.objectives]
        self._finish(number, state, values)
        return True

    def stop(self, number: int) -> TrialRecord:
        """End a paused trial that will not go on: it is recorded as stopped at its rung."""
        self._finish(number, TrialState.PRUNED, None)
        return self._records[number]

    def _finish(self, number: int, state: TrialState, values: list[float] | None) -> None:
        self._storage.set_trial_state_values(number, state, values)
        self._tell_duplicates_of(self._read(self._storage.get_trial(number)))

    def _tell_duplicates_of(self, record: TrialRecord) -> None:
        """Give the outcome of a trial to the duplicates that waited for it."""
        for number in self._duplicates.pop(record.number or 0, ()):
            state, scores, outcome = self._outcome_of(record)
            self._storage.set_trial_user_attr(number, "outcome", outcome)
            if record.merits:
                self._storage.set_trial_user_attr(number, "merits", dict(record.merits))
            self._fresh.append(number)
            self._finish(number, state, scores)

    # Reading
    # ------------------------------------------------------------------------------------------------------

    def take_duplicates(self) -> list[TrialRecord]:
        """Records of duplicates that got their outcome since the last call."""
        fresh, self._fresh = self._fresh, []
        return [self._records[n] for n in fresh]

    def get(self, number: int) -> TrialRecord:
        """The record of one trial."""
        return self._records[number] if number in self._records else self._open[number]

    def records(self) -> list[TrialRecord]:
        """Every finished trial that has a recipe, by number."""
        return [self._records[n] for n in sorted(self._records)]

    def best(self, count: int = 1) -> list[TrialRecord]:
        """The best recipes that were trained to the end, by score; of equal scores the smaller, then the
        earlier one."""
        return best_first(self._records.values())[:count]

    @property
    def trained(self) -> int:
        """Trials that count towards the planned number: finished ones, well or not, and those on a rung. Not
        those that were lost with their process, or stopped with the search."""
        ended = sum(
            r.state != "duplicate" and r.failure not in _NOT_ITS_FAULT for r in self._records.values()
        )
        return ended + len(self.paused)

    def as_record(self, trial: FrozenTrial) -> TrialRecord:
        """A trial as a record."""
        a = trial.user_attrs
        outcome = a.get("outcome", {})
        duplicate = a.get("duplicate_of")
        state: RecordState = _STATES[trial.state]
        if outcome.get("failure") == "stopped":
            state = "interrupted"
        rungs = {str(k): float(v) for k, v in a.get("rungs", {}).items()}
        score = trial.values[0] if trial.state == TrialState.COMPLETE else None
        if duplicate is None and score is not None:
            rungs[str(self.rungs.full)] = score
        return TrialRecord(
            kind="trial",
            label=f"trial {trial.number}",
            state="duplicate" if duplicate is not None else state,
            recipe=a.get("recipe", {}),
            number=trial.number,
            hash=a.get("hash", ""),
            counts=a.get("counts"),
            score=score,
            scores=outcome.get("scores", {}) if duplicate is None else {},
            rungs=rungs,
            merits={str(k): float(v) for k, v in a.get("merits", {}).items()},
            steps=max(map(int, rungs), default=None),
            seconds=outcome.get("seconds", a.get("seconds", 0.0)),
            train_loss=outcome.get("train_loss"),
            error=outcome.get("error"),
            failure=outcome.get("failure"),
            duplicate_of=duplicate,
            values=dict(a[PROPOSED]),
            worker=outcome.get("worker", ""),
            measured=outcome.get("measured") or None,
            metric=outcome.get("metric", a.get("metric")),
            step_cost=a.get("step_cost"),
        )


_STATES: dict[TrialState, RecordState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "paused",
}
