"""What a phase that drives itself is handed: its steps, losses, gradients, and what the model writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.method import Sample
from autopeft.tasks import Task
from autopeft.tasks.kinds import Generation, generative_scorer, get_metric
from autopeft.tasks.kinds.generation import room_of
from autopeft.tasks.tokens import EncodedSplit
from autopeft.training.batches import Rows
from autopeft.training.contexts import evaluation_mode, learning
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.losses import slice_rows
from autopeft.training.memory import with_fewer_rows
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult

__all__ = ["PhaseSession"]

Batch = dict[str, Tensor]


@dataclass
class PhaseSession:
    """See `autopeft.method.Session`.

    Attributes:
        steps: of the phase.
        taken: how many of them so far, those before a pause included.
        take: takes the step of this number, from 0, on a batch or on the next rows.
        result: of the training, which says whether it is to end.
        optimizer: of the phase.
        backbone: the backbone's own parameters, by name.
        forward: the model's plain forward: states that come from the trunk have no gradient.
        gradient: of the training, whose loss, micro-batches and way out of full memory are shared.
        drawing: within, modules draw as they do in a step.
        learners: everything that may require gradients in this phase.
        task: says how texts are written, and what a text is worth: its metric.
        split: which the rows of the phase are of.
        among: the rows that are trained on; `None` for all.
    """

    steps: int
    taken: int
    take: Callable[[int, Mapping[str, Tensor] | None], None]
    result: TrainResult
    optimizer: PhaseOptimizer
    backbone: Mapping[str, nn.Parameter]
    forward: Forward
    gradient: Gradient
    drawing: Callable[[], AbstractContextManager[None]]
    learners: Sequence[nn.Parameter]
    task: Task
    split: EncodedSplit
    among: Rows | None
    plan: TrainingPlan

    @property
    def over(self) -> bool:
        return self.taken == self.steps or self.result.stopped != "done"

    @property
    def rows(self) -> int:
        return self.plan.batch_size

    def step(self, batch: Mapping[str, Tensor] | None = None) -> bool:
        if self.over:
            return False
        self.take(self.taken, batch)
        self.taken += 1
        return True

    def write(
        self,
        rows: int | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        most: int | None = None,
    ) -> list[Sample]:
        """Rows of like length are written to together."""
        model, labels = self.forward.model, self.split.truth
        among = np.arange(len(self.split)) if self.among is None else np.asarray(self.among)
        if rows is not None and rows < len(among):
            among = np.sort(among[torch.randperm(len(among))[:rows].numpy()])
        scorer, metric = generative_scorer(self.task.task_kind.scorer), get_metric(self.task.metric)
        assert labels is not None  # of rows that are trained on
        scorer.rewards(metric, [], labels[:0])  # refused before anything is written
        order = among[np.argsort(self.split.prompt_lengths[among], kind="stable")]
        how = Generation(most, temperature, top_p)

        def written(size: int) -> list[Sample]:
            found = list[Sample]()
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                texts = scorer.sample(model, self.split, chosen, how, device=self.gradient.device)
                rewards = scorer.rewards(metric, [text for _, text in texts], labels[chosen])
                made = zip(chosen, texts, rewards, strict=True)
                found += [Sample(int(row), *own, float(reward)) for row, own, reward in made]
            return found

        with evaluation_mode(model):
            return with_fewer_rows(written, self.plan.eval_rows, model, doing="Writing")

    def batch(self, samples: Sequence[Sample]) -> Batch:
        rows, tokens = [sample.row for sample in samples], [sample.tokens for sample in samples]
        split = self.split.with_answers(rows, tokens, room_of(self.forward.model))
        return split.collate(range(len(samples)), device=self.gradient.device)

    def forget(self, parameters: Sequence[nn.Parameter]) -> None:
        self.optimizer.forget(parameters)

    def batches(self, rows: int | None = None) -> Iterator[Batch]:
        size = self.plan.batch_size if rows is None else rows
        return self.forward.batches(
            self.split,
            size,
            shuffle=True,
            seed=self.plan.seed,
            device=self.gradient.device,
            among=self.among,
        )

    def losses(self, batch: Mapping[str, Tensor], *, training: bool = False) -> Tensor:
        loss, found = self.gradient.loss, []
        mode = self.drawing() if training else evaluation_mode(self.forward.model)
        with mode, torch.no_grad():
            for start in range(0, len(batch["labels"]), self.gradient.micro_rows):
                part = slice_rows(batch, start, start + self.gradient.micro_rows)
                found.append(loss.each(self.forward(part), part))
        return torch.cat(found)

    def gradients(
        self, batch: Mapping[str, Tensor], wanted: Sequence[nn.Parameter], *, training: bool = False
    ) -> list[Tensor]:
        mode = self.drawing() if training else evaluation_mode(self.forward.model)
        own = self.gradient
        gradient = Gradient(self.forward, own.loss, micro_rows=own.micro_rows, device=own.device)
        with mode, torch.enable_grad(), learning([*self.learners, *wanted], wanted):
            try:
                return gradient.of(batch, (), wanted)[1]
            finally:
                self.gradient.micro_rows = gradient.micro_rows
