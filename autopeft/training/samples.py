"""A handful of the answers that a model wrote, kept for a reader."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autopeft.runs.records import Sample
from autopeft.tasks.kinds import Generation, Metric, Scorer, generative_scorer, get_kind
from autopeft.tasks.split import Split
from autopeft.tasks.task import Task
from autopeft.tasks.tokens import EncodedSplit
from autopeft.training.contexts import evaluation_mode

__all__ = ["HANDFUL", "MOST_TOKENS", "Asked", "asked_in", "sampled", "samples_of", "shortened", "told_of"]

HANDFUL = 6
"""Samples of a split."""
MOST_TOKENS = 128
"""New tokens of an answer that is written for its sample alone."""
_KEPT = 400, 200  # letters of the beginning and of the end of a text
_log = logging.getLogger("autopeft")


@dataclass(frozen=True)
class Asked:
    """What each row of a split asks.

    Attributes:
        rows: the rows themselves, where predictions are told beside them (see `Scorer.tell`).
        names: of the task's classes.
    """

    split: str
    texts: Sequence[str]
    rows: Split | None = None
    names: tuple[str, ...] = ()


def samples_of(
    metric: Metric, asked: Asked, written: Sequence[Any], wanted: Sequence[Any]
) -> tuple[Sample, ...]:
    """Of answers that were written to all rows the three that the metric values most and the three that it
    values least, in the order of the rows. Among equal ones the choice is drawn, the same each time.

    Args:
        metric: a generated one. Where it has no values of rows, those count most that are the expected ones.
        written, wanted: answers (rows,).
    """
    found, truth = np.asarray(written, dtype=object), np.asarray(wanted, dtype=object)
    values = _values(metric, found, truth)
    right = np.asarray([_same(a, b) for a, b in zip(found, truth, strict=True)], dtype=np.float64)
    drawn = _drawn(len(found))
    ranked = drawn[np.argsort(-(right if values is None else values)[drawn], kind="stable")]
    half = HANDFUL // 2
    rows = ranked if len(ranked) <= HANDFUL else np.concatenate([ranked[:half], ranked[-half:]])
    return tuple(
        _sample(asked, row, truth[row], found[row], None if values is None else float(values[row]))
        for row in sorted(map(int, rows))
    )


def sampled(
    model: nn.Module,
    split: EncodedSplit,
    asked: Asked,
    *,
    device: str | torch.device | None = None,
) -> tuple[Sample, ...]:
    """Answers that a model writes to a few rows, where no metric had it write to all. They end after
    `MOST_TOKENS` tokens at the latest.

    Args:
        model: of a kind of task that writes.
        split: whose `truth` are texts.
    """
    truth = split.truth
    if truth is None or not len(split):
        return ()
    rows = sorted(_drawn(len(split))[:HANDFUL].tolist())
    place = next(model.parameters()).device if device is None else torch.device(device)
    scorer = generative_scorer(get_kind(split.kind).scorer)
    with evaluation_mode(model):
        texts = scorer.generate(model, split, rows, Generation(max_new_tokens=MOST_TOKENS), device=place)
    return tuple(_sample(asked, row, truth[row], text) for row, text in zip(rows, texts, strict=True))


def told_of(scorer: Scorer, asked: Asked, outputs: NDArray[Any]) -> tuple[Sample, ...]:
    """Predictions of three rows that are right and of three that are not, drawn, the same each time, in the
    order of the rows. Rows of which there is nothing to tell come last.

    Args:
        asked: with `rows`.
        outputs: of these rows.
    """
    assert asked.rows is not None
    told, half = scorer.tell(asked.rows, outputs, asked.names), HANDFUL // 2
    empty = [expected == said == text for (expected, said), text in zip(told, asked.texts, strict=True)]
    drawn = sorted(_drawn(len(told)).tolist(), key=lambda row: empty[row])
    right = [row for row in drawn if told[row][0] == told[row][1]]
    wrong = [row for row in drawn if told[row][0] != told[row][1]]
    rows = [*right[: max(half, HANDFUL - len(wrong))], *wrong[: max(half, HANDFUL - len(right))]]
    return tuple(_sample(asked, row, *told[row]) for row in sorted(rows))


def asked_in(task: Task, split: str) -> Asked | None:
    """What each row of a split asks, where models for the task write answers to it, or predict what can be
    told beside it; else `None`."""
    kind, rows = task.task_kind, task.splits[split]  # type: ignore[index]  # callers name splits of the task
    if kind.scorer.tells and len(rows):
        pairs = rows.pairs or []
        both = (
            [f"{text}\n{pair}" for text, pair in zip(rows.texts, pairs, strict=True)] if pairs else rows.texts
        )
        return Asked(split, both, rows, task.labels)
    return Asked(split, rows.texts) if kind.scorer.writes and len(rows) and kind.encoder.asks(rows) else None


def _drawn(rows: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(rows)


def _values(metric: Metric, written: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64] | None:
    if metric.by_row is None:
        return None
    try:
        found = np.asarray(metric.by_row(written, wanted), dtype=np.float64)
    # Code of any package, at the end of a search whose training must not be lost.
    except Exception:
        _log.warning("%s gives no values of rows", metric.name, exc_info=True)
        return None
    return found if found.shape == (len(written),) and bool(np.all(np.isfinite(found))) else None


def _same(written: Any, wanted: Any) -> bool:
    return str(written).split() == str(wanted).split()


def _sample(asked: Asked, row: int, wanted: Any, written: Any, value: float | None = None) -> Sample:
    return Sample(
        asked.split,
        row,
        prompt=shortened(asked.texts[row]),
        expected=shortened(wanted),
        written=shortened(written),
        right=_same(written, wanted),
        value=None if value is None else round(value, 6),
    )


def shortened(text: Any) -> str:
    """A text of bounded length; what is asked often stands at its end."""
    whole, (start, end) = str(text), _KEPT
    return whole if len(whole) <= start + end else f"{whole[:start]} … {whole[-end:]}"
