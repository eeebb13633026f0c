"""The study of a run, read from a copy of its journal so that a running search is never disturbed.

What the plots of Optuna get is a study in memory with one objective (the score), names made safe for plotly,
and nothing but parameters, scores, rungs and times.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from autopeft.errors import UsageError
from autopeft.foreign import file_in, open_plain, table_of
from autopeft.report.html.values import plotly_text, real, shown
from autopeft.runs.records import TrialRecord, read_record

__all__ = ["History", "copy_journal", "quiet_optuna", "read_history"]

_STUDY = "autopeft"
_LIMIT = 256 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class History:
    """A study made for plots. A trial has the parameters that its recipe had.

    Attributes:
        study: in memory, one objective, the journal's trial numbers.
        metric: what its trials are scored by.
        complete: its trials with a score.
        parameters: those that took more than one value in trials with a score.
        labels: for a parameter whose value is an index into an ordered choice: index to what it means.
        unfinished: records of the trials that were running or waited on a rung when the journal was read.
        objectives: how many the search has.
    """

    study: optuna.Study
    metric: str
    complete: list[FrozenTrial]
    parameters: list[str]
    labels: Mapping[str, Mapping[int, str]]
    unfinished: tuple[TrialRecord, ...]
    objectives: int


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without the library's notices on what the page itself says in words."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


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


def read_history(journal: Path, records: Iterable[TrialRecord] = (), metric: str = "score") -> History:
    """The study of a journal. `records` (of `trials.jsonl`) hold the rungs; `metric` scores the trials.

    Raises:
        UsageError: there is no journal, or it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="autopeft-report-") as folder:
        copy = Path(folder) / "journal.log"
        try:
            copy_journal(journal, copy)
            storage = JournalStorage(JournalFileBackend(str(copy)))
            found = [study.study_name for study in storage.get_all_studies()]
            if not found:
                raise UsageError("journal.log holds no study yet.")
            name = _STUDY if _STUDY in found else found[0]
            return _for_plots(optuna.load_study(study_name=name, storage=storage), records, metric)
        except UsageError:
            raise
        # Optuna replays the lines as they stand: a damaged one surfaces as whatever its code or ours stumbles
        # over.
        except Exception as error:
            kind = type(error).__name__
            raise UsageError(
                f"journal.log is not a journal of a search: {kind}: {shown(error, 200)}."
            ) from error


def _for_plots(study: optuna.Study, records: Iterable[TrialRecord], metric: str) -> History:
    trials = study.get_trials(deepcopy=False)
    by_number = {r.number: r for r in records if r.number is not None}

    # Choices that have an order, by parameter, of the parameters that the study names as ordered.
    names = study.user_attrs.get("ordered")
    wanted = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    ordered = {
        name: found.choices
        for trial in trials
        for name, found in trial.distributions.items()
        if name in wanted and isinstance(found, CategoricalDistribution)
    }

    # Every parameter's name as plots write it; names stay different from one another.
    safe: dict[str, str] = {}
    used: set[str] = set()
    for name in dict.fromkeys(name for trial in trials for name in trial.distributions):
        base = text = plotly_text(name, 40)
        n = 2
        while text in used:
            text, n = f"{base} ({n})", n + 1
        used.add(text)
        safe[name] = text

    storage = InMemoryStorage()
    with quiet_optuna():
        study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], _STUDY)
        for trial in trials:
            copied = _copied(trial, by_number.get(trial.number), ordered, safe)
            storage.create_new_trial(study_id, template_trial=copied)
        drawn = optuna.load_study(study_name=_STUDY, storage=storage)
    complete = drawn.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values: dict[str, set[Any]] = {}
    for trial in complete:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return History(
        study=drawn,
        metric=metric,
        complete=complete,
        parameters=[name for name, distinct in values.items() if len(distinct) > 1],
        labels={
            safe[name]: {i: plotly_text(choice, 24) for i, choice in enumerate(choices)}
            for name, choices in ordered.items()
        },
        unfinished=tuple(_record_of(t) for t in trials if t.state == TrialState.RUNNING),
        objectives=len(study.directions),
    )


def _copied(
    trial: FrozenTrial, record: TrialRecord | None, ordered: Collection[str], names: Mapping[str, str]
) -> FrozenTrial:
    """A trial as plots have it: names and choices as plots write them, and the score as its one value."""
    distributions: dict[str, BaseDistribution] = {}
    params: dict[str, Any] = {}
    for name, found in trial.distributions.items():
        value = trial.params[name]
        if isinstance(found, CategoricalDistribution):
            index = int(found.to_internal_repr(value))
            if name in ordered:  # its place in the list, so that the order counts
                found, value = IntDistribution(0, len(found.choices) - 1), index
            else:
                choices = [plotly_text(c, 40) if isinstance(c, str) else c for c in found.choices]
                # Choices that look the same once shortened stay different: with their place in the list.
                if len(set(map(repr, choices))) < len(choices):
                    choices = [f"{c} ({i})" for i, c in enumerate(choices)]
                found, value = CategoricalDistribution(choices), choices[index]
        distributions[names[name]], params[names[name]] = found, value

    score = trial.values[0] if trial.values else None
    state = trial.state
    if state == TrialState.COMPLETE and (score is None or not math.isfinite(score)):
        state, score = TrialState.FAIL, None
    if state == TrialState.FAIL and table_of(trial.user_attrs.get("outcome")).get("failure") == "stopped":
        state = TrialState.WAITING

    # Step to score. Records have the last step too, and a study with two objectives stores no others.
    noted = {**_record_of(trial).rungs, **(record.rungs if record is not None else {})}
    rungs = {int(step): value for step, value in noted.items()}
    for step, stored in trial.intermediate_values.items():
        known = real(stored)
        if known is not None:
            rungs[step] = known
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
        intermediate_values=rungs,
    )


def _record_of(trial: FrozenTrial) -> TrialRecord:
    """What the journal knows of a trial that has not ended; no more than its number where that is unsound."""
    rungs = table_of(trial.user_attrs.get("rungs"))
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
