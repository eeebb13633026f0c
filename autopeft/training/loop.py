"""The training loop: phases of optimizer steps over a hybrid's parameter groups, with its modules' events."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.errors import DataError, UsageError
from autopeft.hybrid import Hybrid, answering
from autopeft.hybrid.events import fire, settled
from autopeft.hybrid.policies import Policies
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.kinds import get_metric
from autopeft.training.bilevel import Outer
from autopeft.training.calibration import conclude, concluding, prepare
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.checks import check
from autopeft.training.contracts import Trainable
from autopeft.training.errors import NonFiniteLoss, PhaseError
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.gradient import Gradient
from autopeft.training.metering import PeakMemory, timed
from autopeft.training.modes import (
    checkpointing,
    generator_state,
    learning,
    restore_generator,
    seeded,
    training_mode,
)
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.phases import EventSteps, Phase, Stage, StartingValues, stages_of, values_of
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult
from autopeft.training.rows import Rows, rows_apart, rows_of
from autopeft.training.scoring import evaluate
from autopeft.training.session import PhaseSession, Steps
from autopeft.training.stopping import BestState
from autopeft.training.written import Samples

__all__ = ["OnPhase", "OnScore", "OnStep", "ShouldStop", "TrainResult", "batch_stream", "train"]

OnStep = Callable[[int, float], None]
OnScore = Callable[[int, float], None]
OnPhase = Callable[[str, int], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class _Told:
    """Whom a training tells what."""

    step: OnStep | None
    score: OnScore | None
    phase: OnPhase | None
    should_stop: ShouldStop | None

    def begins(self, name: str, steps: int = 0) -> None:
        if self.phase is not None:
            self.phase(name, steps)


def train(
    hybrid: Trainable,
    data: EncodedTask,
    plan: TrainingPlan,
    *,
    on_step: OnStep | None = None,
    on_score: OnScore | None = None,
    on_phase: OnPhase | None = None,
    should_stop: ShouldStop | None = None,
    calibrate: bool = True,
    until: int | None = None,
    resume: Checkpoint | None = None,
) -> TrainResult:
    """Train what a hybrid holds (modules and head) on a task's training rows.

    Methods that look at data first (FISH masks) are calibrated before the first step, unless they were
    before, by an earlier training, by `Hybrid.prepare` or before they were saved: attach anew to have them
    choose for another task. `calibrate=False` leaves them as they are.

    `until` pauses before the plan's steps are done; its checkpoint, given as `resume` with the same plan (in
    which `train_share` may have grown), goes on bitwise as if it had not paused. `finish` events come at the
    end alone, and then, unless `should_stop` ended it, what methods conclude from the rows.

    The same seed gives bitwise the same losses on the same machine with the same number of threads. Torch's
    generators, `training` flags, dropout and `requires_grad` are as before afterwards, also after an
    exception; the model is left on the plan's device. `on_step(step, loss)` is called after each step
    (1-based), `on_score` after each score of `plan.eval_every`, `on_phase(name, steps)` where a phase begins
    (with 0 steps also the calibration and the conclusion), `should_stop()` after each step.

    Raises:
        UsageError: the hybrid is detached, `until` lies outside the training, the plan stops early by itself,
            a policy of the recipe finds nothing to act on, the backbone has no gradient checkpointing and
            memory is to be saved, or a row is longer than prompts leave positions for.
        CompositionError: a method needs logits of each row, and the task's models have them of each token.
        DataError: the checkpoint belongs to another hybrid.
        NonFiniteLoss: the loss or its gradient is NaN or infinite.
        OutOfMemory: memory does not suffice for smaller micro-batches either.
        PhaseError: the phases of the modules cannot be run.
    """
    started, told = time.perf_counter(), _Told(on_step, on_score, on_phase, should_stop)
    with answering(hybrid) if isinstance(hybrid, Hybrid) else nullcontext():
        check(hybrid, data, plan, until, resume)
        device = plan.torch_device()
        hybrid.model.to(device)
        peak = PeakMemory(device)
        dropout = plan.trains_with_dropout(hybrid.recipe.training)
        _begin(hybrid, data, plan, told, resume=resume, calibrate=calibrate)
        with checkpointing(hybrid.model, plan.memory_saving):
            forward = shortest_forward(hybrid, data, plan, dropout=dropout)
            run = _Run(hybrid, data, plan, forward, device, told)
            run.until, run.resume = until, resume
            with (
                seeded(plan.seed, device),
                training_mode(hybrid.model, hybrid.modules.values(), dropout=dropout),
            ):
                run.all_phases()
        run.conclude()
        run.result.memory = peak.bytes()
        run.result.seconds = time.perf_counter() - started
        return run.result


def _begin(
    hybrid: Trainable,
    data: EncodedTask,
    plan: TrainingPlan,
    told: _Told,
    *,
    resume: Checkpoint | None,
    calibrate: bool,
) -> None:
    if isinstance(hybrid, Hybrid) and resume is not None:
        resume.fill(hybrid)
    elif calibrate:
        if hybrid.needs_prepare:
            told.begins("calibration")
        prepare(hybrid, data, plan)


class _Run:
    """One training under way."""

    until: int | None = None
    resume: Checkpoint | None = None
    policies: Policies  # of the phase

    def __init__(
        self,
        hybrid: Trainable,
        data: EncodedTask,
        plan: TrainingPlan,
        forward: Forward,
        device: torch.device,
        told: _Told,
    ) -> None:
        self.hybrid, self.data, self.plan, self.device, self.told = hybrid, data, plan, device, told
        self.result = TrainResult()
        self.events = EventSteps()
        self.forward = forward
        self.revision = hybrid.injection.revision if isinstance(hybrid, Hybrid) else 0
        self.dropout = plan.trains_with_dropout(hybrid.recipe.training)
        self.gradient = Gradient(forward, data.task.loss(), micro_rows=plan.micro_rows, device=device)

    def all_phases(self) -> None:
        modules = self.hybrid.modules
        stages = stages_of(modules, self.plan.steps)
        self.gradient.team.align(values_of(modules, self.hybrid.parameter_groups()))
        if self.resume is not None and len(stages) > 1:
            raise DataError("A training in several phases cannot go on from a checkpoint.")
        starts = StartingValues(stages)
        for stage in stages:
            if starts.returned_to(stage, modules, self.hybrid.parameter_groups()):
                self.refresh()
            self.one_stage(stage)
            if self.result.stopped in ("asked", "paused"):
                break
        if self.result.checkpoint is None:  # also where a pause has no way back
            acted = self._acting()
            with torch.no_grad():
                fire("finish", modules.values())
            self._follow(acted)
        self.gradient.team.check_equal(values_of(modules, self.hybrid.parameter_groups()))

    def one_stage(self, stage: Stage) -> None:
        """From where a phase begins to its output."""
        phase = stage.phase
        self.events.enter(stage, self.result.steps)
        self.told.begins(stage.said(), stage.steps)
        acted = self._acting()
        if phase.begin is not None:
            phase.begin()
        acted = self._follow(acted)
        self._shorten()
        self.phase(stage)
        if phase.output is not None:
            with torch.no_grad():
                self.result.outputs[stage.key] = phase.output()
        self._follow(acted)

    def _acting(self) -> list[Collection[object]]:
        """The backbone's tensors that each module alters, and what acts where on activations and rows."""
        if not isinstance(self.hybrid, Hybrid):
            return []
        found = (getattr(module, "weight_targets", tuple) for module in self.hybrid.modules.values())
        return [*(tuple(t.key for t in targets()) for targets in found), self.hybrid.injection.acting()]

    def _follow(self, before: list[Collection[object]]) -> list[Collection[object]]:
        """Act where modules act now, where this is elsewhere than `before`."""
        now = self._acting()
        if now != before:
            self.refresh()
        return now

    def refresh(self) -> None:
        """Act where modules act now."""
        if isinstance(self.hybrid, Hybrid):
            self.hybrid.refresh()

    def _shorten(self) -> None:
        """Find the shortest forward anew, where modules act elsewhere than when it was found."""
        if not isinstance(self.hybrid, Hybrid) or self.hybrid.injection.revision == self.revision:
            return
        self.forward = shortest_forward(self.hybrid, self.data, self.plan, dropout=self.dropout)
        self.gradient.forward, self.revision = self.forward, self.hybrid.injection.revision

    def conclude(self) -> None:
        """Let methods conclude from the rows what they do, where the training came to its end."""
        self.result.micro_rows = self.gradient.micro_rows
        if self.result.stopped not in ("done", "patience"):
            return
        if concluding(self.hybrid):
            self.told.begins("conclusion")
        rows = self.result.micro_rows
        conclude(self.hybrid, self.data, self.plan, forward=self.forward, micro_rows=rows)

    def phase(self, stage: Stage) -> None:
        """Run a phase with an optimizer of its own."""
        training, phase = self.hybrid.recipe.training, stage.phase
        everything = self.hybrid.parameter_groups()
        # Policies may rename what they split off, so they act on groups that are already chosen.
        self.policies = Policies(training)
        groups = self.policies.adjust(stage.groups(everything), self.hybrid.modules)
        optimizer = PhaseOptimizer(groups, training, stage.steps, self.hybrid.modules.values())
        modules = stage.modules(self.hybrid.modules)
        patience = self.plan.patience
        buffers = [b for module in modules.values() for b in module.buffers()]
        best = None if patience is None else BestState([*optimizer.parameters, *buffers], patience)
        first, since = self._go_on(optimizer)
        trained_on, held_out = rows_apart(self._split(phase), self.plan, phase)
        stream = self._batches(phase, trained_on, since=since, skip=first - since)
        # A module may hold parameters back from its groups, to train them itself.
        learners = [p for g in everything for p in g["params"]]
        learners += [p for module in self.hybrid.modules.values() for p in module.parameters()]
        outer = None
        if phase.outer is not None:
            batches = self._batches(phase, held_out)
            owners = [*modules.values(), *self.policies.terms]
            outer = Outer(phase.outer, self.gradient, owners, optimizer, batches, learners)
        self.result.stopped = "done"
        acted = self._acting()

        def take(local: int, given: Mapping[str, Tensor] | None) -> None:
            nonlocal acted
            if phase.run is not None:  # which may have moved a mask since
                acted = self._follow(acted)
            batch = next(stream) if given is None else dict(given)
            with timed(self.result.step_seconds, self.device):
                self.step(batch, local, optimizer, modules, outer)
            self._is_over(best, modules)

        steps = Steps(stage.steps, first, take, lambda: self.result.stopped != "done")
        with learning(learners, optimizer.parameters):
            try:
                if phase.run is not None:
                    phase.run(self._session(stage, trained_on, steps, optimizer, learners))
                else:
                    while steps.take_next():
                        pass
            finally:
                optimizer.zero_grad()
        if outer is None and phase.resumes:  # what the upper level remembers is not kept
            self._keep(optimizer, stage.steps, since)
        if best is not None:
            best.restore()
        if phase.run is not None:  # a mask may be where it was before the last step
            self._follow([])

    def _session(
        self,
        stage: Stage,
        among: Rows | None,
        steps: Steps,
        optimizer: PhaseOptimizer,
        learners: Sequence[nn.Parameter],
    ) -> PhaseSession:
        """What a phase that drives itself is handed."""
        hybrid, plan, split = self.hybrid, self.plan, self._split(stage.phase)
        plain = Forward(hybrid.model, kind=self.data.task.task_kind)
        if among is None:
            among = rows_of(split, plan)

        def rows(count: int | None) -> Iterator[dict[str, Tensor]]:
            size = plan.batch_size if count is None else count
            return plain.batches(split, size, shuffle=True, seed=plan.seed, device=self.device, among=among)

        return PhaseSession(
            own=steps,
            optimizer=optimizer,
            backbone=hybrid.backbone_parameters() if isinstance(hybrid, Hybrid) else {},
            forward=plain,
            gradient=self.gradient,
            batches_of=rows,
            drawing=lambda: training_mode(hybrid.model, hybrid.modules.values(), dropout=self.dropout),
            learners=learners,
            writing=Samples(hybrid.model, self.data.task, split, among, plan, self.device),
        )

    def _keep(self, optimizer: PhaseOptimizer, steps: int, since: int) -> None:
        """Make the checkpoint of a training that was paused in its only phase."""
        hybrid, result = self.hybrid, self.result
        if result.stopped == "paused" and steps == self.plan.steps and isinstance(hybrid, Hybrid):
            rows, share = self.gradient.micro_rows, self.plan.train_share
            made = Checkpoint.of(hybrid, optimizer, result.losses, rows, self.device, share, since)
            result.checkpoint = replace(made, scores=tuple(result.scores))

    def _go_on(self, optimizer: PhaseOptimizer) -> tuple[int, int]:
        """Return to the checkpoint; the phase's first step, and the one from which its rows were drawn."""
        if self.resume is None:
            return 0, 0
        self.resume.rewind(optimizer, self.device)
        self.result.losses, self.result.scores = list(self.resume.losses), list(self.resume.scores)
        self.gradient.micro_rows = min(self.gradient.micro_rows, self.resume.micro_rows)
        first = self.resume.step
        return first, self.resume.since if self.resume.share == self.plan.train_share else first

    def step(
        self,
        batch: dict[str, Tensor],
        local: int,
        optimizer: PhaseOptimizer,
        modules: Mapping[str, nn.Module],
        outer: Outer | None,
    ) -> None:
        """One optimizer step; `local` counts within the phase, events over the span, callbacks over all."""
        taken = len(self.result.losses)
        optimizer.schedule(local)
        self._event("before_step", optimizer, modules, taken)
        if outer is not None:
            outer(batch, taken)
        owners = [*modules.values(), *self.policies.terms]
        loss = self.gradient.accumulate(batch, owners, optimizer.parameters)
        if not np.isfinite(loss):
            raise NonFiniteLoss("loss", loss, taken + 1, optimizer.highest_rate)
        self._event("after_backward", optimizer, modules, taken)
        optimizer.clip(taken)
        self._event("before_update", optimizer, modules, taken)
        optimizer.step()
        self._event("after_step", optimizer, modules, taken)
        optimizer.zero_grad()
        self.result.losses.append(loss)
        if self.told.step is not None:
            self.told.step(taken + 1, loss)

    def _event(
        self, event: str, optimizer: PhaseOptimizer, modules: Mapping[str, nn.Module], taken: int
    ) -> None:
        """Tell modules, then policies."""
        for name, module in modules.items():
            fire(event, [module], *self.events.at(name, taken))
        self.policies.fire(event, optimizer.inner.param_groups, *self.events.at(None, taken))

    def _is_over(self, best: BestState | None, modules: Mapping[str, nn.Module]) -> bool:
        """Score where it is due, and tell whether to end before all steps are done."""
        done = self.result.steps
        every = self.plan.eval_every
        if every is not None and done % every == 0:
            score = self._score()
            self.result.scores.append((done, score))
            if self.told.score is not None:
                self.told.score(done, score)
            over = all(settled(module, *self.events.at(name, done)) for name, module in modules.items())
            if best is not None and over and best.update(score):
                self.result.stopped = "patience"
        if done == self.until and done < self.plan.steps:
            self.result.stopped = "paused"
        if self.told.should_stop is not None and self.gradient.team.first(self.told.should_stop()):
            self.result.stopped = "asked"
        return self.result.stopped != "done"

    def _score(self) -> float:
        """A score on the way, by what stands for a metric that would have the model write."""
        task = self.data.task
        metric = task.task_kind.scorer.trial_metric(get_metric(task.metric)).name
        state = generator_state(self.device)
        score = evaluate(
            self.hybrid.model,
            self.data.select,
            metric,
            batch_size=self.plan.eval_rows,
            device=self.device,
            forward=self.forward,
        )
        restore_generator(state, self.device)
        return score

    def _split(self, phase: Phase) -> EncodedSplit:
        splits: dict[str, EncodedSplit] = {str(k): v for k, v in self.data.splits.items()}
        if phase.split not in splits or phase.split == "test":
            raise PhaseError(
                f"Phase {phase.name!r} wants to train on split {phase.split!r}; "
                "it may train on 'train' or 'select'."
            )
        return splits[phase.split]

    def _batches(
        self, phase: Phase, among: Rows | None, *, since: int = 0, skip: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        split, plan = self._split(phase), self.plan
        return batch_stream(split, plan, self.device, self.forward, since=since, skip=skip, among=among)


def batch_stream(
    split: EncodedSplit,
    plan: TrainingPlan,
    device: torch.device,
    forward: Forward,
    *,
    since: int = 0,
    skip: int = 0,
    among: Rows | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Batches for `forward` without end: every row of the plan's share, or of those `among`, once in each
    epoch, in a new order each time. `since` is the step at which this share began; the first `skip` batches
    are left out.

    Raises:
        UsageError: the split has no rows or no labels.
    """
    if not len(split) or split.labels is None:
        raise UsageError("Training needs labelled rows, but the split has none.")
    among = rows_of(split, plan) if among is None else among
    rows = len(split) if among is None else len(among)
    epoch, skip = divmod(skip, -(-rows // plan.batch_size))
    entropy = (plan.seed, since) if since else (plan.seed,)
    while True:
        order = int(np.random.SeedSequence((*entropy, epoch)).generate_state(1)[0])
        yield from forward.batches(
            split, plan.batch_size, shuffle=True, seed=order, device=device, among=among, skip=skip
        )
        epoch, skip = epoch + 1, 0
