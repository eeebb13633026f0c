"""The figure that a run recorded of its hybrid, and why a score of now may differ from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from autopeft.assets.precision import PRECISIONS
from autopeft.export.trained import TrainedHybrid
from autopeft.foreign import table_of
from autopeft.hybrid.prediction import stands_for_several
from autopeft.runs.documents import Result, read_result
from autopeft.tasks import Task

__all__ = ["Recorded", "recorded"]

_SAME = 1e-6
_UNKNOWN = "Rows, metric and weights are those of the run; another device or number of threads may be why."
_FLATTERED = "The hybrid was trained on rows of this split, which flatters the score."


@dataclass(frozen=True)
class Recorded:
    """What a run recorded on a split.

    Attributes:
        score: its figure; `None` where it has none for these rows.
        reasons: why the score of now is another one, a sentence each; empty where it is the same.
    """

    score: float | None
    reasons: tuple[str, ...]


def recorded(
    known: TrainedHybrid, task: Task, split: str, rows: int, score: float, *, seed: int | None, model: Any
) -> Recorded | None:
    """The run's figure for the same data, split and metric; `None` where it has none.

    Args:
        rows: that were scored now.
        score: of now.
        seed: of the splits, where one was given.
        model: with the hybrid attached.
    """
    data, result = table_of(known.manifest.get("data")), read_result(known.result)
    if table_of(data.get("source")).get("sha256") != task.source.sha256:
        return None
    if split in ("train", "all"):
        return Recorded(None, (_FLATTERED,))
    if data.get("metric") != task.metric:
        return None
    figure = _figure(result, split)
    if figure is None:
        return None
    if abs(figure - score) <= _SAME:
        return Recorded(figure, ())
    found = [
        *_of_rows(known, data, split, rows, seed),
        *_of_runs(result, split),
        *_of_precision(result, model),
        *_of_model(known, model),
    ]
    return Recorded(figure, tuple(found) or (_UNKNOWN,))


def _figure(result: Result, split: str) -> float | None:
    if split != "select":
        return result.test_mean if split == "test" else None
    if result.select_mean is not None:
        return result.select_mean if result.select_metric in (None, result.metric) else None
    return result.search_score if result.trial_metric in (None, result.metric) else None


def _of_rows(
    known: TrainedHybrid, data: Mapping[str, Any], split: str, rows: int, seed: int | None
) -> Iterator[str]:
    before = known.arguments.get("seed")
    if seed is not None and before is not None and seed != before:
        yield (
            f"The rows were split with seed {seed}, and by the run with seed {before}: the hybrid may have "
            f"been trained on rows that are {split} now, which flatters it."
        )
    scored = table_of(data.get("rows")).get(split)
    if isinstance(scored, int) and scored != rows:
        yield f"These are {rows:,} rows of {split}; the run scored {scored:,} of them, as its effort says."


def _of_runs(result: Result, split: str) -> Iterator[str]:
    seeds = len(result.test if split == "test" else result.select)
    if seeds > 1:
        yield (
            f"The run's figure is the mean of {seeds} trainings with fresh seeds; the weights that are kept "
            "are of one of them."
        )
    elif seeds == 0 and result.kind != "train" and result.search_score is not None:
        yield "The run's figure is that of a trial of the search; no training with fresh seeds came after it."


def _of_precision(result: Result, model: Any) -> Iterator[str]:
    now = next((name for name, dtype in PRECISIONS.items() if dtype == getattr(model, "dtype", None)), None)
    then = result.precision
    if then is not None and now is not None and then != now:
        yield f"The backbone is in {now}, and was in {then} in the run; --precision sets it."


def _of_model(known: TrainedHybrid, model: Any) -> Iterator[str]:
    if stands_for_several(model):
        yield (
            "The hybrid stands for several models, and the mean of their predictions is scored here; trials "
            "of a search may be scored without it."
        )
    then = table_of(known.manifest.get("versions"))
    changed = [
        f"{name} {then[name]} then, {now} now"
        for name in ("autopeft", "torch", "transformers")
        if (now := _version(name)) is not None and name in then and then[name] != now
    ]
    if changed:
        yield f"Libraries differ: {'; '.join(changed)}."


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
