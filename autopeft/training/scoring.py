"""Predictions and scores of a model on a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autopeft.devices import generators_kept
from autopeft.errors import UsageError
from autopeft.hybrid import predictive
from autopeft.runs.records import Sample
from autopeft.tasks.encode import EncodedSplit
from autopeft.tasks.kinds import Generation, Scorer, generative_scorer, get_kind, get_metric
from autopeft.training.contexts import evaluation_mode
from autopeft.training.forward import Forward
from autopeft.training.memory import with_fewer_rows
from autopeft.training.samples import Asked, sampled, samples_of, told_of

__all__ = ["Scored", "evaluate", "predict", "score_by_rows", "scores"]


def predict(
    model: nn.Module,
    split: EncodedSplit,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    forward: Forward | None = None,
    generation: Generation | None = None,
    texts_alone: bool = False,
    told: Callable[[str], None] | None = None,
) -> NDArray[Any]:
    """What the split's kind of task keeps of each row (`Scorer.outputs`), in the split's own order: logits
    (rows, classes); those of an ensemble, or under a posterior, are of the mean distribution (see
    `autopeft.hybrid.predictive`). With `generation` the model also writes an answer to each row, which is
    kept beside them (`GenerativeScorer.with_texts`), or returned by itself (rows,) where `texts_alone` are
    wanted; that to a single row is `told` piece by piece.

    Runs in eval mode and leaves no gradients; every `training` flag is as before afterwards. `device`
    defaults to the model's; a model that lies elsewhere is moved there. `forward` defaults to the model's
    plain one. `batch_size` is halved, and all starts again, where memory does not suffice.

    Raises:
        UsageError: the split has no rows.
        OutOfMemory: memory does not suffice for single rows.
    """
    if not len(split):
        raise UsageError("Nothing to predict: the split has no rows.")
    place = next(model.parameters()).device if device is None else torch.device(device)
    model.to(place)
    kind = get_kind(split.kind)
    way = Forward(model, kind=kind) if forward is None else forward
    at_once = min(batch_size, len(split.offsets) - 1)  # a row may have several sequences
    reduced = partial(with_fewer_rows, rows=at_once, model=model, doing="Evaluation")
    with evaluation_mode(model):
        if generation is None:
            return reduced(partial(_outputs, way, split, kind.scorer, place))
        answers = None if texts_alone else reduced(partial(_outputs, way, split, kind.scorer, place))
        texts = reduced(partial(_written, model, split, generation, place, told))
        if answers is None:
            return texts
        return generative_scorer(kind.scorer).with_texts(answers, texts.tolist())


def _outputs(
    way: Forward, split: EncodedSplit, scorer: Scorer, place: torch.device, batch_size: int
) -> NDArray[Any]:
    """What the kind of task keeps of each row, in the split's own order."""
    parts = []
    for batch in way.batches(split, batch_size, shuffle=False, device=place):
        run = partial(predictive, way.model, partial(way, batch), mean=scorer.average(batch))
        parts.append(scorer.outputs(way.model, batch, run))
    outputs = np.concatenate(parts)
    restored = np.empty_like(outputs)
    restored[split.order()] = outputs
    return split.of_rows(restored)


def _written(
    model: nn.Module,
    split: EncodedSplit,
    how: Generation,
    place: torch.device,
    told: Callable[[str], None] | None,
    batch_size: int,
) -> NDArray[Any]:
    """What the model writes for each row, (rows,), in batches of prompts of like length, longest first."""
    scorer = generative_scorer(get_kind(split.kind).scorer)
    order = np.argsort(-split.prompt_lengths, kind="stable")
    texts = np.empty(len(split), dtype=object)
    with generators_kept(place, seed=how.seed):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            one = told if len(split) == 1 else None
            texts[rows] = scorer.generate(model, split, rows, how, device=place, told=one)
    return texts


def scores(model: nn.Module, split: EncodedSplit, metrics: Sequence[str], **options: Any) -> dict[str, float]:
    """Several scores from one pass; the options are those of `predict`.

    Raises:
        UsageError: the split has no labels.
        TaskError: a metric is unknown or does not fit.
    """
    if split.truth is None:
        raise UsageError("Nothing to score against: the split has no labels.")
    known, scorer = [get_metric(metric) for metric in metrics], get_kind(split.kind).scorer
    how = Generation() if any(metric.generated for metric in known) else None
    outputs = predict(model, split, generation=how, **options)
    return {metric.name: scorer.score(metric, outputs, split.truth) for metric in known}


def evaluate(
    model: nn.Module,
    split: EncodedSplit,
    metric: str,
    **options: Any,
) -> float:
    """One score, higher is better; options are those of `predict`.

    Raises:
        UsageError, TaskError, OutOfMemory: see `scores` and `predict`.
    """
    return score_by_rows(model, split, metric, loss=False, **options).score


@dataclass(frozen=True)
class Scored:
    """A score, what each group of rows contributes to it (see `Scorer.pseudo_values`), the mean loss over
    rows where the kind of task has one (see `Scorer.row_loss`), that loss at the temperature which suits
    the rows best (see `Scorer.calibrated_loss`), samples of what was written, and of a set of tasks the score
    of each (see `Scorer.by_task`)."""

    score: float
    pseudo_values: tuple[float, ...] = ()
    loss: float | None = None
    calibrated_loss: float | None = None
    samples: tuple[Sample, ...] = ()
    by_task: Mapping[str, float] = field(default_factory=dict)


def score_by_rows(
    model: nn.Module,
    split: EncodedSplit,
    metric: str,
    *,
    text_ids: NDArray[Any] | None = None,
    loss: bool = True,
    asked: Asked | None = None,
    **options: Any,
) -> Scored:
    """As `evaluate`, with the loss, and with the contributions of groups of rows where `text_ids` are given.

    Args:
        text_ids: which of the different texts each row has, (rows,); see `Task.text_ids`.
        loss: without it the rows are read once where the metric compares texts: to be answered.
        asked: what each row asks, where samples of the answers are wanted (see `samples_of` and `sampled`).

    Raises:
        UsageError, TaskError, OutOfMemory: see `scores` and `predict`.
    """
    if split.truth is None:
        raise UsageError("Nothing to score against: the split has no labels.")
    known, scorer = get_metric(metric), get_kind(split.kind).scorer
    how = Generation() if known.generated else None
    alone = how is not None and not loss
    outputs = predict(model, split, generation=how, texts_alone=alone, **options)
    found = () if text_ids is None else scorer.pseudo_values(known, outputs, split.truth, text_ids)
    samples: tuple[Sample, ...] = ()
    if asked is not None and known.generated:
        samples = samples_of(known, asked, scorer.decisions(outputs).tolist(), split.truth.tolist())
    elif asked is not None and asked.rows is not None:
        samples = told_of(scorer, asked, outputs)
    elif asked is not None:
        samples = sampled(model, split, asked, device=options.get("device"))
    return Scored(
        scorer.score(known, outputs, split.truth),
        tuple(round(float(v), 6) for v in found),
        None if alone else scorer.row_loss(outputs, split.truth),
        scorer.calibrated_loss(outputs, split.truth) if loss and not alone else None,
        samples,
        scorer.by_task(outputs, split.truth),
    )
