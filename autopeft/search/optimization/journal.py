"""The journal of a study: the file, checked line by line before a search goes on from it, and its trials.

A journal is a file of Optuna's: one JSON object a line, an operation on the study. Optuna replays it and
leaves out, without a word, whatever does not fit; a damaged line would cost a score, or surface as an error
of its code. So each line is checked first. Nothing that a journal names is imported: distributions are looked
up among Optuna's own.

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

import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from autopeft.errors import DataError, RecipeError
from autopeft.foreign import open_plain, parse_json
from autopeft.recipe import Recipe
from autopeft.runs.files import cut_torn_line
from autopeft.search.optimization.distributions import Codec

__all__ = [
    "FIRST",
    "FORMAT",
    "NAME",
    "PROPOSED",
    "InUse",
    "all_in_use",
    "changes",
    "check_journal",
    "check_values",
    "journal_begun",
    "open_journal",
    "proposed",
]

FORMAT = 2
NAME, PROPOSED = "autopeft", "proposed"
FIRST = "first"
"""The points that a search begins with, an attribute of the study: the last that is written before the first
trial."""
_LARGEST, _LONGEST = 1 << 30, 16 << 20  # bytes of a journal, and of a line
_FINISHED = tuple(state.value for state in TrialState if state.is_finished())
_OTHER_SPACE = "This journal belongs to another search space than the space.yaml beside it."

InUse = Callable[[Mapping[str, Any], Recipe], Collection[str]]
"""Names of the parameters that had a part in a recipe, from the point that it stands for and the recipe."""


# The file
# --------------------------------------------------------------------------------------------------------


def open_journal(journal: Path) -> JournalStorage:
    """The storage in `journal`, which is made if it does not exist. What a killed process left is mended: a
    stale lock, and a torn last line.

    The caller holds the run folder's lock, so nobody else is writing.

    Raises:
        DataError: a line is damaged; the message names it.
    """
    Path(f"{journal}.lock").unlink(missing_ok=True)
    cut_torn_line(journal)
    if journal.exists():
        check_journal(journal)
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.ERROR))
    return JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))


def journal_begun(journal: Path) -> bool:
    """Whether a journal holds the points that its search begins with; it lacks them if the process ended
    before they were written.

    Raises:
        UsageError: it is no plain file.
    """
    if not journal.exists():
        return False
    written = (
        f'"user_attr":{{"{FIRST}":'.encode()
    )  # as Optuna writes it; a parameter may be called `first` too
    with open_plain(journal, _LARGEST) as file:
        return any(written in line for line in file)


# Its lines
# --------------------------------------------------------------------------------------------------------

Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False, gt=-1e300, lt=1e300)]
Whole: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Value: TypeAlias = bool | Annotated[int, Field(gt=-(2**63), lt=2**63)] | Number | str | None
Values: TypeAlias = dict[str, Value]


def _steps(found: dict[str, float]) -> dict[str, float]:
    if not all(step.isascii() and step.isdigit() and len(step) <= 18 for step in found):
        raise ValueError("a step is not a number")
    return found


def _distribution(text: str) -> str:
    try:
        json_to_distribution(text)
    # Optuna makes it of the attributes as they stand.
    except Exception as error:
        raise ValueError(f"no distribution: {error}") from error
    return text


def _time(text: str) -> str:
    datetime.fromisoformat(text).astimezone()
    return text


def _one(found: dict[str, Any]) -> dict[str, Any]:
    if len(found) != 1:
        raise ValueError("one attribute is set at a time")
    return found


Time: TypeAlias = Annotated[str, AfterValidator(_time)]
State: TypeAlias = Literal[0, 1, 2, 3, 4]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Outcome(_Part):
    scores: dict[str, Number] = {}
    seconds: Number = 0.0
    train_loss: Number | None = None
    worker: str = ""
    error: str | None = None
    failure: str | None = None


class _TrialAttributes(_Part):
    """What the study writes of a trial."""

    proposed: Values = {}
    point: Values = {}
    recipe: dict[str, Any] = {}
    hash: str = ""
    counts: dict[str, Number] = {}
    rungs: Annotated[dict[str, Number], AfterValidator(_steps)] = {}
    outcome: _Outcome = _Outcome()
    seconds: Number = 0.0
    duplicate_of: Whole = 0
    first: Whole = 0
    again: Whole = 0


class _StudyAttributes(_Part):
    journal: Whole = 1
    ordered: list[str] = []
    seed: Whole = 0
    sampler: str = ""
    first: list[Values] = []


class _Study(_Part):
    op_code: Literal[0]
    study_name: Literal["autopeft"]
    directions: Annotated[list[Literal[1, 2]], Field(min_length=1, max_length=2)]


class _SetOfStudy(_Part):
    op_code: Literal[2]
    study_id: Literal[0]
    user_attr: Annotated[dict[str, Any], AfterValidator(_one)]


class _SetOfSystem(_Part):
    op_code: Literal[3]
    study_id: Literal[0]
    system_attr: Annotated[dict[str, Any], AfterValidator(_one)]


class _Trial(_Part):
    op_code: Literal[4]
    study_id: Literal[0]
    state: State = 0
    values: list[Number] | None = None
    value: Number | None = None
    datetime_start: Time | None
    datetime_complete: Time | None = None
    distributions: dict[str, Annotated[str, AfterValidator(_distribution)]] = {}
    params: dict[str, Number] = {}
    user_attrs: _TrialAttributes = _TrialAttributes()
    system_attrs: dict[str, Any] = {}
    intermediate_values: Annotated[dict[str, Number], AfterValidator(_steps)] = {}


class _End(_Part):
    op_code: Literal[6]
    trial_id: Whole
    state: State
    values: list[Number] | None
    datetime_start: Time | None = None
    datetime_complete: Time | None = None


class _Step(_Part):
    op_code: Literal[7]
    trial_id: Whole
    step: Whole
    intermediate_value: Number


class _SetOfTrial(_Part):
    op_code: Literal[8]
    trial_id: Whole
    user_attr: Annotated[dict[str, Any], AfterValidator(_one)]


class _SetOfTrialSystem(_Part):
    op_code: Literal[9]
    trial_id: Whole
    system_attr: Annotated[dict[str, Any], AfterValidator(_one)]


_Operation: TypeAlias = (
    _Study | _SetOfStudy | _SetOfSystem | _Trial | _End | _Step | _SetOfTrial | _SetOfTrialSystem
)
_LINE: TypeAdapter[_Operation] = TypeAdapter(Annotated[_Operation, Field(discriminator="op_code")])


class _History:
    """The study that the lines so far make."""

    def __init__(self) -> None:
        self.objectives = 0
        self.ended: list[bool] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in a line.

        Raises:
            ValueError: it is none, or does not fit those before it.
        """
        found = _LINE.validate_python(dict(line))
        if isinstance(found, _Study):
            # Every process that opens the study says so again; Optuna takes the first.
            self.objectives = self.objectives or len(found.directions)
        elif not self.objectives:
            raise ValueError("there is no study yet")
        elif isinstance(found, _SetOfStudy):
            _StudyAttributes.model_validate(found.user_attr)
        elif isinstance(found, _Trial):
            self._check_values(found.state, found.values if found.value is None else [found.value])
            if set(found.params) != set(found.distributions):
                raise ValueError("its parameters and their distributions have other names")
            if found.user_attrs.duplicate_of > len(self.ended):
                raise ValueError("it is the duplicate of a later trial")
            self.ended.append(found.state in _FINISHED)
        elif not isinstance(found, _SetOfSystem):
            if found.trial_id >= len(self.ended) or self.ended[found.trial_id]:
                raise ValueError(f"trial {found.trial_id} is not running then")
            if isinstance(found, _SetOfTrial):
                _TrialAttributes.model_validate(found.user_attr)
            elif isinstance(found, _End):
                self._check_values(found.state, found.values)
                self.ended[found.trial_id] = found.state in _FINISHED

    def _check_values(self, state: int, values: list[float] | None) -> None:
        wanted = self.objectives if state == TrialState.COMPLETE.value else 0
        if len(values or ()) != wanted:
            raise ValueError(f"it has {len(values or ())} values, and {wanted} are needed")


def check_journal(journal: Path) -> None:
    """Check every line of a journal.

    Raises:
        DataError: it cannot be read, or a line is damaged; the message names the line and what is left.
    """
    history, number = _History(), 0
    with open_plain(journal, _LARGEST, DataError) as file:
        while line := file.readline(_LONGEST + 1):
            number += 1
            if len(line) > _LONGEST:
                raise DataError(f"{str(journal)!r} has a line of more than {_LONGEST >> 20} MiB.")
            try:
                operation = parse_json(line)
                if not isinstance(operation, dict):
                    raise ValueError("it is no JSON object")
                history.add(operation)
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"Line {number} of {str(journal)!r} is damaged: {_why(error)}. The search cannot go on "
                    f"from it. `autopeft report {journal.parent}` shows what can be read, and --from "
                    f"{journal.parent} starts a new search from the trials that had ended."
                ) from error


def _why(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{error or type(error).__name__}"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])


# Its trials
# --------------------------------------------------------------------------------------------------------


def all_in_use(point: Mapping[str, Any], recipe: Recipe) -> Collection[str]:
    """`InUse` for a caller that does not know the space: all of them."""
    return point


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """What repair changed, by parameter, in words."""
    found = {}
    for name, value in after.items():
        # True equals 1, and is another choice.
        if name in before and (type(before[name]), before[name]) != (type(value), value):
            both = (before[name], value)
            words = (json.dumps(v) if v is None or isinstance(v, bool) else str(v) for v in both)
            found[name] = " → ".join(words)
    return found


def proposed(codec: Codec, trial: FrozenTrial) -> dict[str, Any]:
    """What the sampler proposed for a trial of the journal.

    Raises:
        DataError: the trial belongs to another space.
    """
    values = trial.user_attrs.get(PROPOSED)
    if not isinstance(values, Mapping):
        raise DataError(_OTHER_SPACE)
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
        raise DataError(f"{_OTHER_SPACE} {what}: {error}") from error
