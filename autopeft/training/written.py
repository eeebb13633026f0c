"""What a model writes in the course of its training, with rewards, and batches of it to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.method import Sample
from autopeft.tasks import Task
from autopeft.tasks.kinds import Generation, generative_scorer, get_metric
from autopeft.tasks.kinds.generation import room_of
from autopeft.tasks.tokens import EncodedSplit
from autopeft.training.memory import with_fewer_rows
from autopeft.training.modes import evaluation_mode
from autopeft.training.plan import TrainingPlan
from autopeft.training.rows import Rows

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """Texts of one model to rows of a split.

    Attributes:
        model: with everything attached.
        task: says how texts are written, and what a text is worth: its metric.
        split: which the rows are of.
        among: the rows that are trained on; `None` for all.
        plan: how many rows are at once; halved where memory does not suffice.
        device: of the model.
    """

    model: nn.Module
    task: Task
    split: EncodedSplit
    among: Rows | None
    plan: TrainingPlan
    device: torch.device

    def write(self, count: int | None, how: Generation) -> list[Sample]:
        """See `autopeft.method.Session.write`; rows of like length are written to together."""
        among = np.arange(len(self.split)) if self.among is None else np.asarray(self.among)
        if count is not None and count < len(among):
            among = np.sort(among[torch.randperm(len(among))[:count].numpy()])
        scorer, metric = generative_scorer(self.task.task_kind.scorer), get_metric(self.task.metric)
        labels = self.split.truth
        assert labels is not None  # of rows that are trained on
        scorer.rewards(metric, [], labels[:0])  # refused before anything is written
        order = among[np.argsort(self.split.prompt_lengths[among], kind="stable")]

        def written(size: int) -> list[Sample]:
            found = list[Sample]()
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                texts = scorer.sample(self.model, self.split, rows, how, device=self.device)
                rewards = scorer.rewards(metric, [text for _, text in texts], labels[rows])
                made = zip(rows, texts, rewards, strict=True)
                found += [Sample(int(row), *own, float(reward)) for row, own, reward in made]
            return found

        with evaluation_mode(self.model):
            return with_fewer_rows(written, self.plan.eval_rows, self.model, doing="Writing")

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """See `autopeft.method.Session.batch`."""
        rows, tokens = [sample.row for sample in samples], [sample.tokens for sample in samples]
        room = room_of(self.model)
        split = self.split.with_answers(rows, tokens, room)
        return split.collate(range(len(samples)), device=self.device)
