"""The search's memory: an Optuna study in a journal file, with repair, duplicates and failures handled by us.

The journal is the only source of truth: whatever is not in it did not happen. A proposal is asked from the
sampler, mapped to a recipe, repaired into the budget and hashed; a recipe that was already scored is told
its known score and never trained again. The sampler is told its *raw* parameters with the repaired
recipe's score.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from autopeft.errors import AutoPEFTError
from autopeft.search.jobs import CountTable, JobResult, RecordState, TrialRecord
from autopeft.search.samplers import make_sampler

if TYPE_CHECKING:
    from autopeft.counting import Counts
    from autopeft.recipe import Recipe
    from autopeft.search.space_bound import Parameter

__all__ = ["Codec", "Proposal", "Repaired", "SearchStudy"]

_NAME = "autopeft"
_NOT_ITS_FAULT = ("lost", "stopped")
_MODELLED = 10


@dataclass(frozen=True)
class Repaired:
    """What the study needs of a repaired suggestion: `hash` is equal for recipes that train the same."""

    recipe: Recipe
    counts: Counts
    hash: str


@dataclass(frozen=True)
class Proposal:
    """A recipe inside the budget that was not scored before; `number` is its trial in the study."""

    number: int
    recipe: Mapping[str, Any]
    hash: str
    counts: CountTable


class Codec:
    """Maps a space's parameters to Optuna distributions and back.

    Choices with an order become an index, so that samplers see it; other choices stay categorical.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.distributions: dict[str, BaseDistribution] = {}
        self._indexed: dict[str, tuple[Any, ...]] = {}
        for p in parameters:
            self.distributions[p.name] = self._distribution(p)

    def _distribution(self, p: Parameter) -> BaseDistribution:
        if p.kind == "int":
            return IntDistribution(int(p.low), int(p.high), log=bool(p.log))
        if p.kind == "float":
            return FloatDistribution(float(p.low), float(p.high), log=bool(p.log))
        if p.ordered:
            self._indexed[p.name] = p.choices
            return IntDistribution(0, len(p.choices) - 1)
        return CategoricalDistribution(p.choices)

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as the space's values."""
        return {k: self._indexed[k][v] if k in self._indexed else v for k, v in params.items()}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The space's values as Optuna's parameters."""
        return {
            k: self._indexed[k].index(v) if k in self._indexed else v
            for k, v in values.items()
            if k in self.distributions
        }


class SearchStudy:
    """Proposals and results of one search, in `journal`.

    Opening an existing journal turns trials that were running into failed ones (their process is gone),
    cuts a torn last line, and moves the sampler's seed on by the number of trials, so that it does not
    replay.

    Args:
        journal: file of the Optuna journal; made if it does not exist. One process at a time may write it.
        parameters: the space's flat parameters.
        repair: maps the space's values to a recipe inside the budget; raises `AutoPEFTError` where none
            exists.
        first: values tried before the sampler's own, on a new study.
        patience: proposals in a row that may be known already before the space counts as exhausted; those
            after the first ten are drawn at random, for samplers that settle on one point.
    """

    def __init__(
        self,
        journal: Path,
        parameters: Sequence[Parameter],
        repair: Callable[[dict[str, Any]], Repaired],
        *,
        sampler: str,
        seed: int,
        trials: int,
        first: Iterable[Mapping[str, Any]] = (),
        patience: int = 100,
    ) -> None:
        self._codec = Codec(parameters)
        self._repair = repair
        self._patience = patience
        self._sampler_name, self._planned = sampler, trials
        self._waiting: dict[str, list[int]] = {}
        self._known: dict[str, int] = {}
        self._fresh: list[int] = []
        make_sampler(sampler, seed=seed, trials=trials)
        _mend(journal)
        self._storage = JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(level, optuna.logging.ERROR))
        self.study = optuna.create_study(
            storage=self._storage, study_name=_NAME, direction="maximize", load_if_exists=True
        )
        self._study_id = self._storage.get_study_id_from_name(_NAME)
        past = self.study.get_trials(deepcopy=False)
        self._adopt(past)
        self._seed = seed + len(past)
        self.study.sampler = make_sampler(sampler, seed=self._seed, trials=trials)
        if not past:
            self.study.set_user_attr("seed", seed)
            self.study.set_user_attr("sampler", sampler)
            for values in first:
                self.study.enqueue_trial(self._codec.encode(values), skip_if_exists=True)

    def _adopt(self, past: Sequence[FrozenTrial]) -> None:
        for t in past:
            if t.state == TrialState.RUNNING:
                self._set(
                    t.number, error="The process that ran this trial ended before it did.", failure="lost"
                )
                self.study.tell(t.number, state=TrialState.FAIL)
            elif "hash" in t.user_attrs and not _forgettable(t):
                self._known.setdefault(t.user_attrs["hash"], t.number)

    def _set(self, number: int, **attributes: Any) -> None:
        trial_id = self._trial_id(number)
        for key, value in attributes.items():
            self._storage.set_trial_user_attr(trial_id, key, value)

    def _trial_id(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number))

    def propose(self) -> Proposal | None:
        """The next recipe to train, or `None` when the space holds nothing new (within `patience` tries)."""
        for attempt in range(self._patience):
            number, params = self._ask(at_random=attempt >= min(_MODELLED, self._patience // 2))
            try:
                repaired = self._repair(self._codec.decode(params))
            except AutoPEFTError as error:
                self._set(number, error=str(error), failure="infeasible")
                self.study.tell(number, state=TrialState.FAIL)
                continue
            counts, recipe = repaired.counts.to_dict(), repaired.recipe.to_dict()
            self._set(number, recipe=recipe, hash=repaired.hash, counts=counts)
            twin = self._known.get(repaired.hash)
            if twin is None:
                self._known[repaired.hash] = number
                return Proposal(number, recipe, repaired.hash, counts)
            self._set(number, duplicate_of=twin)
            self._tell_duplicate(number, twin)
        return None

    def _ask(self, *, at_random: bool) -> tuple[int, dict[str, Any]]:
        keep = self.study.sampler
        if at_random:
            count = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = make_sampler("random", seed=self._seed + count, trials=self._planned)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                trial = self.study.ask(self._codec.distributions)
        finally:
            self.study.sampler = keep
        return trial.number, dict(trial.params)

    def _tell_duplicate(self, number: int, twin: int) -> None:
        original = self._trial(twin)
        if original.state == TrialState.COMPLETE:
            self.study.tell(number, original.value)
            self._fresh.append(number)
        elif original.state == TrialState.FAIL:
            self._set(
                number, error=original.user_attrs.get("error"), failure=original.user_attrs.get("failure")
            )
            self.study.tell(number, state=TrialState.FAIL)
            self._fresh.append(number)
        else:
            self._waiting.setdefault(original.user_attrs["hash"], []).append(number)

    def record(self, number: int, result: JobResult) -> bool:
        """Store what came of a proposal; a second call for the same number changes nothing and returns
        `False`.

        A failed job and a score that is not finite become a failed trial.
        """
        trial = self._trial(number)
        if trial.state.is_finished():
            return False
        score = result.score
        error, failure = result.error, result.failure
        if error is None and (score is None or not math.isfinite(score)):
            error, failure = f"The score is not finite: {score}.", "non_finite"
        self._set(
            number,
            scores={k: v for k, v in result.scores.items() if math.isfinite(v)},
            seconds=result.seconds,
            train_loss=result.train_loss if math.isfinite(result.train_loss or 0.0) else None,
            worker=result.worker,
            error=error,
            failure=failure,
            **({"counts": result.counts} if result.counts is not None else {}),
        )
        if error is None:
            self.study.tell(number, score)
        else:
            self.study.tell(number, state=TrialState.FAIL)
        if failure in _NOT_ITS_FAULT:
            self._known.pop(trial.user_attrs["hash"], None)
        for twin in self._waiting.pop(trial.user_attrs["hash"], ()):
            self._tell_duplicate(twin, number)
        return True

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._trial_id(number))

    def take_duplicates(self) -> list[TrialRecord]:
        """Records of duplicates that were told since the last call."""
        fresh, self._fresh = self._fresh, []
        return [self.as_record(self._trial(n)) for n in fresh]

    def get(self, number: int) -> TrialRecord:
        """The record of one trial."""
        return self.as_record(self._trial(number))

    def records(self) -> list[TrialRecord]:
        """Every finished trial that has a recipe, by number."""
        trials = self.study.get_trials(deepcopy=False)
        return [self.as_record(t) for t in trials if t.state.is_finished() and "recipe" in t.user_attrs]

    def best(self, count: int = 1) -> list[TrialRecord]:
        """The best trained recipes by score; of equal scores the smaller, then the earlier one."""
        done = [r for r in self.records() if r.state == "complete" and r.score is not None]
        return sorted(done, key=lambda r: (-(r.score or 0.0), (r.counts or {}).get("deployed", 0), r.number))[
            :count
        ]

    @property
    def trained(self) -> int:
        """Trials that were handed out for training and have ended, well or not."""
        return sum(r.state != "duplicate" for r in self.records())

    def as_record(self, trial: FrozenTrial) -> TrialRecord:
        """A finished trial as a record."""
        a = trial.user_attrs
        duplicate = a.get("duplicate_of")
        state: RecordState = "failed"
        if duplicate is not None:
            state = "duplicate"
        elif trial.state == TrialState.COMPLETE:
            state = "complete"
        value = trial.value if trial.state == TrialState.COMPLETE else None
        return TrialRecord(
            kind="trial",
            label=f"trial {trial.number}",
            state=state,
            recipe=a.get("recipe", {}),
            number=trial.number,
            hash=a.get("hash", ""),
            counts=a.get("counts"),
            score=value,
            scores=a.get("scores", {}) if duplicate is None else {},
            seconds=a.get("seconds", 0.0),
            train_loss=a.get("train_loss"),
            error=a.get("error"),
            failure=a.get("failure"),
            duplicate_of=duplicate,
            values=self._codec.decode(trial.params),
            worker=a.get("worker", ""),
        )


def _forgettable(trial: FrozenTrial) -> bool:
    """Whether a trial says nothing about its recipe: a copy, or one whose worker was lost or stopped."""
    a = trial.user_attrs
    return a.get("duplicate_of") is not None or a.get("failure") in _NOT_ITS_FAULT


def _mend(journal: Path) -> None:
    """Make a journal that a killed process left readable: drop a torn last line and a stale lock.

    The caller holds the run folder's lock, so nobody else is writing.
    """
    lock = Path(f"{journal}.lock")
    lock.unlink(missing_ok=True)
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        tail = min(size, 1 << 20)
        file.seek(size - tail)
        data = file.read(tail)
        if data and not data.endswith(b"\n"):
            file.truncate(size - tail + data.rfind(b"\n") + 1)
