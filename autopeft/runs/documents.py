"""`manifest.json` and `result.json` as they are read: what is not as it should be counts as not there.

A run folder may come from another version or from a stranger. Keys that this version does not know are left
out, and numbers are finite. What a run needs to go on is checked where it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from autopeft.runs.records import Sample, read_samples

__all__ = [
    "Answer",
    "Answers",
    "Compared",
    "CoursePoint",
    "Gated",
    "Manifest",
    "Measured",
    "Result",
    "Size",
    "Taken",
    "read_gated",
    "read_manifest",
    "read_result",
]

T = TypeVar("T")


def _known(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


def _sound(value: Any, handler: ValidatorFunctionWrapHandler) -> tuple[Any, ...]:
    found: list[Any] = []
    for item in value if isinstance(value, (list, tuple)) else ():
        try:
            found.extend(handler((item,)))
        except ValidationError:
            continue
    return tuple(found)


Known = Annotated[T | None, WrapValidator(_known)]
"""A value of this kind, else `None`."""
Several = Annotated[tuple[T, ...], WrapValidator(_sound)]
"""The items of a list that are of this kind."""
Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Flag = Annotated[bool, BeforeValidator(lambda value: value is True)]
Table = Annotated[T, BeforeValidator(lambda value: value if isinstance(value, dict) else {})]
"""A nested table, empty where it is none."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Size(_Document):
    """Parameters of a recipe."""

    deployed: Known[float] = None
    share: Known[float] = None
    head: Known[float] = None


class Measured(_Document):
    """A baseline, or (in `Result`) the winner: scores of each seed, and parameters. `further_task` is what
    one more task adds to those that are deployed."""

    name: Known[str] = None
    counts: Table[Size] = Size()
    select: Several[float] = ()
    test: Several[float] = ()
    select_mean: Known[float] = None
    test_mean: Known[float] = None
    further_task: Known[Whole] = None


class Compared(_Document):
    """The winner against one baseline on *test*; `text` is the search's own sentence."""

    baseline: Known[str] = None
    difference: Known[float] = None
    low: Known[float] = None
    high: Known[float] = None
    text: Known[str] = None


class Taken(_Document):
    """The resources of a recipe; `text` is the search's own sentence, where there were limits."""

    name: Known[str] = None
    text: Known[str] = None


class Answer(_Document):
    """The recipe that reaches one goal; `text` is the search's own sentence."""

    text: Known[str] = None


class Answers(_Document):
    """The answer to each goal."""

    best: Known[Answer] = None
    smallest: Known[Answer] = None
    cheapest: Known[Answer] = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences that are there."""
        found = (self.best, self.smallest, self.cheapest)
        return tuple(answer.text for answer in found if answer is not None and answer.text)


class CoursePoint(_Document):
    """Hypervolume after a trial, and the training steps spent until then."""

    steps: float
    hypervolume: float
    trial: Known[Whole] = None
    seconds: Known[float] = None


def _bias(value: Any) -> Any:
    return value.get("value") if isinstance(value, Mapping) else value


class Result(Measured):
    """`result.json`: the outcome of a search, or (`kind` is `train`) of the training of a fixed recipe.

    Attributes:
        recipe: as data; it may be none.
        origin: what the winner is: a trial, or a baseline's name.
        finding: what was found of the search's goal, in a sentence.
        search_score: of the winner in the search itself, by `trial_metric` where that is not the metric.
        select_metric: of what was scored on *select* with fresh seeds, where that is not the metric.
        constant: what the same answer for every row scores.
        over_constant: the winner against that.
        remarks: what limits what the scores can say: of the rows, and of what the search left undone.
        selection_bias: select minus test.
        samples: of the answers that the winner wrote.
        precision: of the backbone under the weights that are kept.
        confirmed: whether the winner of a search was trained again with fresh seeds.
        finalists: how many were, of the recipes that it found.
    """

    kind: Known[str] = None
    recipe: Any = None
    number: Known[Whole] = None
    origin: Known[str] = None
    finding: Known[str] = None
    answers: Table[Answers] = Answers()
    metric: Known[str] = None
    trial_metric: Known[str] = None
    select_metric: Known[str] = None
    test_sd: Known[float] = None
    search_score: Known[float] = None
    baselines: Several[Measured] = ()
    comparisons: Several[Compared] = ()
    resources: Several[Taken] = ()
    constant: Known[Measured] = None
    over_constant: Known[Compared] = None
    remarks: Several[str] = ()
    hypervolume: Several[CoursePoint] = ()
    selection_bias: Annotated[Known[float], BeforeValidator(_bias)] = None
    interrupted: Flag = False
    exhausted: Flag = False
    out_of_time: Flag = False
    notice: Known[str] = None
    seconds: Known[float] = None
    samples: Annotated[tuple[Sample, ...], PlainValidator(read_samples)] = ()
    precision: Known[str] = None
    confirmed: Flag = False
    finalists: Known[Whole] = None


class Gated(_Document):
    """A line of `gates.jsonl`: a gated training.

    Attributes:
        trial: its number.
        blocks, layers: of each group of blocks.
        probabilities: of the groups at each step.
    """

    trial: Known[Whole] = None
    blocks: Several[str] = ()
    layers: Several[str] = ()
    probabilities: Several[list[float]] = ()


class Limits(_Document):
    """The budget in parameters."""

    least: Known[float] = None
    most: Known[float] = None


class Planned(_Document):
    """The trials and steps of the effort and the training plan."""

    trials: Known[Whole] = None
    steps: Known[Whole] = None


class Origin(_Document):
    """The source of the data; `stand_in_for` names the data that the user wanted instead."""

    stand_in_for: Known[str] = None


class Fact(_Document):
    """One thing that is known of the rows."""

    name: str
    text: str


class Summary(_Document):
    """Facts and remarks on the rows before training."""

    facts: Several[Fact] = ()
    remarks: Several[str] = ()


class Data(_Document):
    """The task."""

    name: Known[str] = None
    kind: Known[str] = None
    metric: Known[str] = None
    rows: Known[dict[str, Whole]] = None
    pairs: Flag = False
    summary: Table[Summary] = Summary()
    source: Table[Origin] = Origin()


class Backbone(_Document):
    """The backbone."""

    parameters: Known[Whole] = None


class Manifest(_Document):
    """`manifest.json`: what a run is about."""

    kind: Known[str] = None
    created: Known[str] = None
    task: Known[str] = None
    model: Known[str] = None
    budget: Known[str] = None
    space: Known[str] = None
    sampler: Known[str] = None
    trial_metric: Known[str] = None
    seed: Known[Whole] = None
    notice: Known[str] = None
    data: Table[Data] = Data()
    backbone: Table[Backbone] = Backbone()
    limits: Table[Limits] = Limits()
    effort: Table[Planned] = Planned()
    training: Table[Planned] = Planned()


def read_result(table: Mapping[str, Any]) -> Result:
    """A `result.json`, read."""
    return Result.model_validate(dict(table))


def read_gated(lines: Iterable[Mapping[str, Any]]) -> list[Gated]:
    """The lines of `gates.jsonl` that are whole, of each trial the last."""
    found: dict[int, Gated] = {}
    for line in lines:
        gated = Gated.model_validate(dict(line))
        groups = len(gated.blocks)
        whole = gated.probabilities and {groups} == {len(p) for p in (*gated.probabilities, gated.layers)}
        if gated.trial is not None and groups and whole:
            found[gated.trial] = gated
    return list(found.values())


def read_manifest(table: Mapping[str, Any]) -> Manifest:
    """A `manifest.json`, read."""
    return Manifest.model_validate(dict(table))
