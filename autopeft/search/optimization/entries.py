"""A trial as it stands in the journal, where people read it and the study finds all that its sampler needs.

The parameters of a trial are those of its recipe: the space's own values, as they are after repair, without
those that had no part in the recipe. `study.best_params` and optuna-dashboard show them. Three user
attributes hold the rest:

```
proposed   every value that the sampler proposed, before repair: what the sampler learns from
point      every value after repair
repaired   what repair changed, in words: {"lora.rank": "8 → 2"}
```
Journals of version 0.1.0 held the proposed values as parameters, ordered choices as indices. They are written
anew when their search goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.errors import DataError, RecipeError
from autopeft.recipe import Recipe
from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.storage import NAME, open_journal

__all__ = [
    "FORMAT",
    "PROPOSED",
    "InUse",
    "all_in_use",
    "changes",
    "check_values",
    "entry",
    "proposed",
    "renewed",
]

FORMAT = 2
PROPOSED = "proposed"
_OF_ANOTHER = "This journal belongs to another search space than the space.yaml beside it."

InUse = Callable[[Mapping[str, Any], Recipe], Collection[str]]
"""Names of the parameters that had a part in a recipe, from the point that it stands for and the recipe."""


def all_in_use(point: Mapping[str, Any], recipe: Recipe) -> Collection[str]:
    """`InUse` where nothing is known of the space: all of them."""
    return point


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """What repair changed, by parameter, in words."""
    return {
        name: f"{_word(before[name])} → {_word(value)}"
        for name, value in after.items()
        # True equals 1, and is another choice.
        if name in before and (type(before[name]), before[name]) != (type(value), value)
    }


def _word(value: Any) -> str:
    """A value as YAML writes it."""
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)


def entry(
    codec: Codec,
    values: Mapping[str, Any],
    attributes: Mapping[str, Any],
    in_use: InUse,
    state: TrialState,
    told: Sequence[float] | None = None,
) -> FrozenTrial:
    """A trial for the journal.

    Args:
        values: what the sampler proposed.
        attributes: user attributes; where there is a recipe, `recipe` and `point` are among them.
        told: the objectives' values of a complete trial.
    """
    shown, more = dict(values), {PROPOSED: dict(values)}
    if "recipe" in attributes:
        point = attributes["point"]
        names = in_use(point, Recipe.from_dict(attributes["recipe"]))
        shown = {name: point[name] for name in values if name in names}
        more["repaired"] = changes(values, point)
    return create_trial(
        state=state,
        values=told,
        params=shown,
        distributions={name: codec.recorded[name] for name in shown},
        user_attrs={**more, **attributes},
    )


def proposed(codec: Codec, trial: FrozenTrial) -> dict[str, Any]:
    """What the sampler proposed for a trial of the journal.

    Raises:
        DataError: the trial belongs to another space.
    """
    values = trial.user_attrs.get(PROPOSED)
    if not isinstance(values, Mapping):
        raise DataError(_OF_ANOTHER)
    _check_trial(codec, trial, values, trial.user_attrs.get("point") or values)
    return dict(values)


def _check_trial(
    codec: Codec, trial: FrozenTrial, values: Mapping[str, Any], point: Mapping[str, Any]
) -> None:
    """Check that what was proposed for a trial of the journal, and what that became, are of the space.

    Raises:
        DataError: it is not.
    """
    for found in (values, point):
        check_values(codec, found, f"Trial {trial.number}")


def check_values(codec: Codec, values: Mapping[str, Any], what: str) -> None:
    """Check that a journal's values are values of the space.

    Raises:
        DataError: they are not.
    """
    try:
        codec.check(values)
    except RecipeError as error:
        raise DataError(f"{_OF_ANOTHER} {what}: {error}") from error


def renewed(storage: JournalStorage, journal: Path, codec: Codec, in_use: InUse) -> JournalStorage:
    """The journal's storage; one that an earlier version began is written anew first, under the same numbers.

    Raises:
        DataError: the journal belongs to another space.
    """
    (study,) = storage.get_all_studies()  # the lines were checked for it
    if study.user_attrs.get("journal", 1) >= FORMAT:
        return storage
    new = journal.with_name(f"{journal.name}-new")
    new.unlink(missing_ok=True)
    try:
        _write_anew(study, storage.get_all_trials(study._study_id), new, codec, in_use)
    except DataError:
        new.unlink()
        raise
    os.replace(new, journal)
    return open_journal(journal)


def _write_anew(
    study: FrozenStudy, trials: Sequence[FrozenTrial], new: Path, codec: Codec, in_use: InUse
) -> None:
    target = open_journal(new)
    study_id = target.create_new_study(study.directions, NAME)
    for key, value in study.system_attrs.items():
        target.set_study_system_attr(study_id, key, value)
    for key, value in study.user_attrs.items():
        points = [_decoded(codec, params) for params in value] if key == "first" else value
        target.set_study_user_attr(study_id, key, points)
    target.set_study_user_attr(study_id, "journal", FORMAT)
    for trial in trials:
        target.create_new_trial(study_id, _rewritten(codec, trial, in_use))


def _rewritten(codec: Codec, trial: FrozenTrial, in_use: InUse) -> FrozenTrial:
    values = _decoded(codec, trial.params)
    attributes = trial.user_attrs
    _check_trial(codec, trial, values, attributes.get("point", {}) if "recipe" in attributes else values)
    try:
        found = entry(codec, values, attributes, in_use, trial.state, trial.values)
    except ValueError as error:  # a value that the space does not have
        raise DataError(_OF_ANOTHER) from error
    found.intermediate_values = dict(trial.intermediate_values)
    found.datetime_start, found.datetime_complete = trial.datetime_start, trial.datetime_complete
    return found


def _decoded(codec: Codec, params: Mapping[str, Any]) -> dict[str, Any]:
    if set(params) != set(codec.distributions):
        raise DataError(_OF_ANOTHER)
    try:
        return codec.decode(params)
    except (IndexError, TypeError) as error:
        raise DataError(_OF_ANOTHER) from error
