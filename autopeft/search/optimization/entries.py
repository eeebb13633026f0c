"""A trial as it stands in the journal, where people read it and the study finds all that its sampler needs.

The parameters of a trial are those of its recipe: the space's own values, as they are after repair, without
those that had no part in the recipe. `study.best_params` and optuna-dashboard show them. Three user
attributes hold the rest:

```
proposed   every value that the sampler proposed, before repair: what the sampler learns from
point      every value after repair
repaired   what repair changed, in words: {"lora.rank": "8 → 2"}
```
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.errors import DataError, RecipeError
from autopeft.recipe import Recipe
from autopeft.search.optimization.distributions import Codec

__all__ = [
    "FORMAT",
    "PROPOSED",
    "InUse",
    "all_in_use",
    "changes",
    "check_values",
    "entry",
    "proposed",
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
    for found in (values, trial.user_attrs.get("point") or values):
        check_values(codec, found, f"Trial {trial.number}")
    return dict(values)


def check_values(codec: Codec, values: Mapping[str, Any], what: str) -> None:
    """Check that a journal's values are values of the space.

    Raises:
        DataError: they are not.
    """
    try:
        codec.check(values)
    except RecipeError as error:
        raise DataError(f"{_OF_ANOTHER} {what}: {error}") from error
