"""The study of a run, read from a copy of its journal so that a running search is never disturbed.

What the plots of Optuna get is a study in memory with one objective (the score), names made safe for plotly,
and nothing but parameters, scores, rungs and times.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from autopeft.errors import UsageError
from autopeft.foreign import file_in, open_plain
from autopeft.report.html.values import mapping, plotly_text, real, shown
from autopeft.runs.records import TrialRecord, read_record

__all__ = ["History", "copy_journal", "read_history"]

_STUDY = "autopeft"
_LIMIT = 256 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class History:
    """A study made for plots. A trial has the parameters that its recipe had.

    Attributes:
        study: in memory, one objective, the journal's trial numbers.
        labels: for a parameter whose value is an index into an ordered choice: index to what it means.
        unfinished: records of the trials that were running or waited on a rung when the journal was read.
        objectives: how many the search has.
    """

    study: optuna.Study
    labels: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    unfinished: tuple[TrialRecord, ...] = ()
    objectives: int = 1

    @property
    def complete(self) -> list[FrozenTrial]:
        """Trials with a score."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    @property
    def parameters(self) -> list[str]:
        """Parameters that took more than one value in trials with a score."""
        seen: dict[str, set[Any]] = {}
        for trial in self.complete:
            for name, value in trial.params.items():
                seen.setdefault(name, set()).add(value)
        return [name for name, values in seen.items() if len(values) > 1]


def copy_journal(journal: Path, target: Path, limit: int = _LIMIT) -> None:
    """Copy a journal's whole lines: a line that is being written, or was cut by a crash, is left out.

    Raises:
        UsageError: there is none in its folder that can be read, or it has more than `limit` bytes.
    """
    if file_in(journal.parent, journal.name) is None:
        raise UsageError("This run has no journal.log.")
    kept = read = 0
    with open_plain(journal, limit) as source, target.open("wb") as copy:
        while chunk := source.read(_CHUNK):
            read += len(chunk)
            if read > limit:
                raise UsageError(f"journal.log has more than {limit >> 20} MiB; no more are read.")
            end = chunk.rfind(b"\n") + 1
            kept = read - len(chunk) + end if end else kept
            copy.write(chunk)
        copy.truncate(kept)


def read_history(journal: Path, records: Iterable[TrialRecord] = ()) -> History:
    """The study of a journal. `records` (of `trials.jsonl`) hold the rungs.

    Raises:
        UsageError: there is no journal, or it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="autopeft-report-") as folder:
        copy = Path(folder) / "journal.log"
        try:
            copy_journal(journal, copy)
            return _history(_load(copy), records)
        except UsageError:
            raise
        # Optuna replays the lines as they stand: a damaged one surfaces as whatever its code or ours stumbles
        # over.
        except Exception as error:
            kind = type(error).__name__
            raise UsageError(
                f"journal.log is not a journal of a search: {kind}: {shown(error, 200)}."
            ) from error


def _history(study: optuna.Study, records: Iterable[TrialRecord]) -> History:
    trials = study.get_trials(deepcopy=False)
    ordered = _ordered(study.user_attrs.get("ordered"), trials)
    by_number = {r.number: r for r in records if r.number is not None}
    names = _safe_names(trials)
    return History(
        study=_in_memory([_indexed(t, ordered) for t in trials], by_number, names),
        labels={
            names[name]: {i: plotly_text(choice, 24) for i, choice in enumerate(choices)}
            for name, choices in ordered.items()
        },
        unfinished=tuple(_record_of(t) for t in trials if t.state == TrialState.RUNNING),
        objectives=len(study.directions),
    )


def _load(journal: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(journal)))
    found = [study.study_name for study in storage.get_all_studies()]
    if not found:
        raise UsageError("journal.log holds no study yet.")
    return optuna.load_study(study_name=_STUDY if _STUDY in found else found[0], storage=storage)


def _ordered(names: Any, trials: Iterable[FrozenTrial]) -> dict[str, tuple[CategoricalChoiceType, ...]]:
    """The choices that have an order, by parameter, for the parameters that the study names as such."""
    wanted = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    return {
        name: found.choices
        for trial in trials
        for name, found in trial.distributions.items()
        if name in wanted and isinstance(found, CategoricalDistribution)
    }


def _indexed(trial: FrozenTrial, ordered: Collection[str]) -> FrozenTrial:
    """A trial with places in the list for choices that have an order, so that the order counts."""
    found = copy(trial)
    params, distributions = dict(trial.params), dict(trial.distributions)
    for name, choices in trial.distributions.items():
        if name in ordered and isinstance(choices, CategoricalDistribution):
            params[name] = int(choices.to_internal_repr(params[name]))
            distributions[name] = IntDistribution(0, len(choices.choices) - 1)
    found.params, found.distributions = params, distributions
    return found


def _safe_names(trials: Iterable[FrozenTrial]) -> dict[str, str]:
    """Every parameter's name as plots write it; names stay different from one another."""
    safe: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(name for trial in trials for name in trial.distributions):
        base = shown_name = plotly_text(name, 40)
        n = 2
        while shown_name in taken:
            shown_name, n = f"{base} ({n})", n + 1
        taken.add(shown_name)
        safe[name] = shown_name
    return safe


def _choice(value: CategoricalChoiceType) -> CategoricalChoiceType:
    return plotly_text(value, 40) if isinstance(value, str) else value


def _distribution(found: BaseDistribution) -> BaseDistribution:
    if not isinstance(found, CategoricalDistribution):
        return found
    choices = tuple(_choice(c) for c in found.choices)
    # Choices that look the same once shortened stay as they are different: with their place in the list.
    if len(set(map(repr, choices))) < len(choices):
        choices = tuple(f"{c} ({i})" for i, c in enumerate(choices))
    return CategoricalDistribution(choices)


def _in_memory(
    trials: list[FrozenTrial], records: Mapping[int, TrialRecord], names: Mapping[str, str]
) -> optuna.Study:
    storage = InMemoryStorage()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.ERROR))
    try:
        study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], _STUDY)
        for trial in trials:
            record = records.get(trial.number)
            storage.create_new_trial(study_id, template_trial=_copied(trial, record, names))
        return optuna.load_study(study_name=_STUDY, storage=storage)
    finally:
        optuna.logging.set_verbosity(level)


def _copied(trial: FrozenTrial, record: TrialRecord | None, names: Mapping[str, str]) -> FrozenTrial:
    distributions, params = {}, {}
    for name, found in trial.distributions.items():
        safe = _distribution(found)
        if isinstance(safe, CategoricalDistribution) and isinstance(found, CategoricalDistribution):
            index = int(found.to_internal_repr(trial.params[name]))
            params[names[name]] = safe.choices[index]
        else:
            params[names[name]] = trial.params[name]
        distributions[names[name]] = safe
    score = trial.values[0] if trial.values else None
    state = trial.state
    if state == TrialState.COMPLETE and (score is None or not math.isfinite(score)):
        state, score = TrialState.FAIL, None
    if state == TrialState.FAIL and mapping(trial.user_attrs.get("outcome")).get("failure") == "stopped":
        state = TrialState.WAITING
    return FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=state,
        value=score if state == TrialState.COMPLETE else None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=params,
        distributions=distributions,
        user_attrs={},
        system_attrs={},
        intermediate_values=_rungs(trial, record),
    )


def _record_of(trial: FrozenTrial) -> TrialRecord:
    """What the journal knows of a trial that has not ended; no more than its number where that is unsound."""
    rungs = mapping(trial.user_attrs.get("rungs"))
    name = f"trial {trial.number}"
    line = {
        "kind": "trial",
        "label": name,
        "state": "paused" if rungs else "running",
        "recipe": trial.user_attrs.get("recipe", {}),
        "number": trial.number,
        "counts": trial.user_attrs.get("counts"),
        "rungs": dict(rungs),
    }
    try:
        record = read_record(line)
    except ValueError:
        return TrialRecord("trial", name, "running", {}, trial.number)
    return replace(record, steps=max(map(int, record.rungs), default=None))


def _rungs(trial: FrozenTrial, record: TrialRecord | None) -> dict[int, float]:
    """Step to score. Records have the last step too, and a study with two objectives stores no others."""
    given = {**_record_of(trial).rungs, **(record.rungs if record is not None else {})}
    found = {int(step): score for step, score in given.items()}
    for step, score in trial.intermediate_values.items():
        value = real(score)
        if value is not None:
            found[step] = value
    return found
