"""The training loop: phases of optimizer steps over a hybrid's parameter groups, with its modules' events."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.devices import generators_kept
from autopeft.errors import DataError
from autopeft.hybrid import Hybrid
from autopeft.hybrid.events import fire, settled
from autopeft.hybrid.policies import Policies
from autopeft.method import Concludes
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.kinds import get_metric
from autopeft.training.batches import Rows, batch_stream, held_out_rows, share_of_rows
from autopeft.training.bilevel import Outer
from autopeft.training.calibration import conclude, prepare
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.checks import check
from autopeft.training.contexts import checkpointing, learning, training_mode
from autopeft.training.contracts import Trainable
from autopeft.training.errors import NonFiniteLoss, PhaseError
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.gradient import Gradient
from autopeft.training.metering import PeakMemory, clock
from autopeft.training.optimizer import PhaseOptimizer
from autopeft.training.phases import Stage, return_to_start, stages_of, values_of
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult
from autopeft.training.scoring import evaluate
from autopeft.training.session import PhaseSession
from autopeft.training.stopping import BestState

__all__ = ["OnPhase", "OnScore", "OnStep", "ShouldStop", "TrainResult", "train"]

OnStep = Callable[[int, float], None]
OnScore = Callable[[int, float], None]
OnPhase = Callable[[str, int], None]
ShouldStop = Callable[[], bool]


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
    policies: Sequence[Any] = (),
) -> TrainResult:
    """Train what a hybrid holds (modules and head) on a task's training rows.

    Methods that look at data first (FISH masks) are calibrated before the first step, unless they were
    before, by an earlier training, by `Hybrid.prepare` or before they were saved: attach anew to have them
    choose for another task. `calibrate=False` leaves them as they are.

    `until` pauses before the plan's steps are done; its checkpoint, given as `resume` with the same plan (in
    which `train_share` may have grown), goes on bitwise as if it had not paused. `policies` act after the
    recipe's own (see `autopeft.hybrid.policies`). `finish` events come at the end alone, and then, unless
    `should_stop` ended it, what methods conclude from the rows.

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
    started = time.perf_counter()
    if isinstance(hybrid, Hybrid):
        hybrid.require_attached()
    check(hybrid, data, plan, until, resume)
    device = plan.torch_device()
    hybrid.model.to(device)
    peak = PeakMemory(device)

    # Calibrate, or return to where the training was paused.
    if isinstance(hybrid, Hybrid) and resume is not None:
        resume.fill(hybrid)
    elif calibrate:
        if hybrid.needs_prepare and on_phase is not None:
            on_phase("calibration", 0)
        prepare(hybrid, data, plan)

    # Train phase by phase: without phases of its modules, a training is one phase of everything.
    modules, result = hybrid.trained_modules, TrainResult()
    dropout = plan.trains_with_dropout(hybrid.recipe.training)
    with checkpointing(hybrid.model, plan.memory_saving):
        forward = shortest_forward(hybrid, data, plan, dropout=dropout)
        gradient = Gradient(forward, data.task.loss(), micro_rows=plan.micro_rows, device=device)
        training = _Training(
            hybrid=hybrid,
            data=data,
            plan=plan,
            device=device,
            dropout=dropout,
            gradient=gradient,
            result=result,
            on_step=on_step,
            on_score=on_score,
            on_phase=on_phase,
            should_stop=should_stop,
            until=until,
            resume=resume,
            also=policies,
            revision=hybrid.injection.revision if isinstance(hybrid, Hybrid) else 0,
        )
        with (
            generators_kept(device, seed=plan.seed),
            training_mode(hybrid.model, hybrid.modules.values(), dropout=dropout),
        ):
            stages = stages_of(modules, plan.steps)
            trains = any(group["params"] for group in hybrid.parameter_groups())
            if not trains and any(isinstance(module, Concludes) for module in modules.values()):
                stages = []  # all comes after training: no step is taken
            gradient.team.align(values_of(modules, hybrid.parameter_groups()))
            if resume is not None and len(stages) > 1:
                raise DataError("A training in several phases cannot go on from a checkpoint.")
            starts: dict[bool | str, dict[tuple[str, str], Tensor]] = {}
            for i, stage in enumerate(stages):
                altered = return_to_start(stages[i:], starts, modules, hybrid.parameter_groups())
                if altered and isinstance(hybrid, Hybrid):
                    hybrid.refresh()
                training.run(stage)
                if result.stopped in ("asked", "paused"):
                    break
            if result.checkpoint is None:  # also where a pause has no way back
                acting = training.follow()
                with torch.no_grad():
                    fire("finish", modules.values())
                training.follow(acting)
            gradient.team.check_equal(values_of(modules, hybrid.parameter_groups()))

    # Let methods conclude from the rows, where the training came to its end.
    result.micro_rows = gradient.micro_rows
    if result.stopped in ("done", "patience"):
        if on_phase is not None and any(isinstance(module, Concludes) for module in modules.values()):
            on_phase("conclusion", 0)
        conclude(hybrid, data, plan, forward=gradient.forward, micro_rows=result.micro_rows)
    result.memory = peak.bytes()
    result.seconds = time.perf_counter() - started
    return result


@dataclass(kw_only=True)
class _Training:
    """A training under way.

    Attributes:
        dropout: whether the backbone's own dropout acts.
        gradient: of a batch, by the shortest forward of what is attached at present.
        also: policies beside the recipe's.
        revision: of the injection that this forward was found for.
        begun: the step at which events began to count, for the phase's owner and for the others.
        stage, policies, modules, owners, optimizer, outer, best, stream, acting: of the present phase: where
            it stands in the training, the recipe's policies, the modules that events fire on, those whose
            loss terms count, the optimizer, the upper level, the best state so far, batches without end, and
            where modules act.
    """

    hybrid: Trainable
    data: EncodedTask
    plan: TrainingPlan
    device: torch.device
    dropout: bool
    gradient: Gradient
    result: TrainResult
    on_step: OnStep | None
    on_score: OnScore | None
    on_phase: OnPhase | None
    should_stop: ShouldStop | None
    until: int | None
    resume: Checkpoint | None
    also: Sequence[Any]
    revision: int
    begun: dict[str, int] = field(default_factory=dict)
    stage: Stage = field(init=False)
    policies: Policies = field(init=False)
    modules: dict[str, nn.Module] = field(init=False)
    owners: list[Any] = field(init=False)
    optimizer: PhaseOptimizer = field(init=False)
    outer: Outer | None = field(init=False)
    best: BestState | None = field(init=False)
    stream: Iterator[dict[str, Tensor]] = field(init=False)
    acting: list[Collection[object]] = field(init=False)

    def run(self, stage: Stage) -> None:
        """Run a phase from where it begins to its output, with an optimizer of its own."""
        hybrid, plan, result, phase = self.hybrid, self.plan, self.result, stage.phase
        self.stage = stage
        for part, span in (("own", stage.own), ("others", stage.others)):
            if span.begins:
                self.begun[part] = result.steps
        if self.on_phase is not None:
            self.on_phase(stage.label(), stage.steps)
        before = self.follow()
        if phase.begin is not None:
            phase.begin()
        before = self.follow(before)
        if isinstance(hybrid, Hybrid) and hybrid.injection.revision != self.revision:
            self.gradient.forward = shortest_forward(hybrid, self.data, plan, dropout=self.dropout)
            self.revision = hybrid.injection.revision

        # What trains. Policies may rename what they split off, so they act on groups that are already chosen.
        everything = hybrid.parameter_groups()
        self.policies = Policies(hybrid.recipe.training, self.also)
        groups = self.policies.adjust(stage.groups(everything), hybrid.trained_modules)
        modules = self.modules = stage.modules(hybrid.trained_modules)
        self.owners = [*modules.values(), *self.policies.terms]
        optimizer = self.optimizer = PhaseOptimizer(
            groups, hybrid.recipe.training, stage.steps, hybrid.trained_modules.values()
        )
        # A module may hold parameters back from its groups, to train them itself.
        learners = [p for g in everything for p in g["params"]]
        learners += [p for module in hybrid.modules.values() for p in module.parameters()]
        self.best = None
        if plan.patience is not None:
            buffers = [b for module in modules.values() for b in module.buffers()]
            self.best = BestState([*optimizer.parameters, *buffers], plan.patience)

        # Where it goes on from: a checkpoint, with batches from the step at which the share of rows began.
        first = since = 0
        if self.resume is not None:
            self.resume.rewind(optimizer, self.device)
            result.losses, result.scores = list(self.resume.losses), list(self.resume.scores)
            self.gradient.micro_rows = min(self.gradient.micro_rows, self.resume.micro_rows)
            first = self.resume.step
            since = self.resume.since if self.resume.share == plan.train_share else first

        # Which rows it trains on, and which the upper level sees.
        phase = self.policies.upon(phase)
        splits: dict[str, EncodedSplit] = {str(k): v for k, v in self.data.splits.items()}
        if phase.split not in splits or phase.split == "test":
            raise PhaseError(
                f"Phase {phase.name!r} wants to train on split {phase.split!r}; "
                "it may train on 'train' or 'select'."
            )
        split = splits[phase.split]
        rows, held_out = held_out_rows(split, plan, phase)
        self.stream = batch_stream(
            split, plan, self.device, self.gradient.forward, since=since, skip=first - since, among=rows
        )
        self.outer = None
        if phase.outer is not None:
            batches = batch_stream(split, plan, self.device, self.gradient.forward, among=held_out)
            self.outer = Outer(phase.outer, self.gradient, self.owners, optimizer, batches, learners)

        # Its steps: of the loop, or of a phase that drives itself.
        result.stopped = "done"
        self.acting = self.follow()
        with learning(learners, optimizer.parameters):
            try:
                if phase.run is not None:
                    phase.run(self.session(split, rows, first, learners))
                else:
                    for step in range(first, stage.steps):
                        self.step(step)
                        if self.result.stopped != "done":
                            break
            finally:
                optimizer.inner.zero_grad(set_to_none=True)

        # What it leaves: a checkpoint where a training of one phase was paused, the best state, an output.
        resumes = stage.phase.outer is None and phase.resumes  # what a module's remembers is not kept
        paused = self.result.stopped == "paused" and stage.steps == plan.steps
        if paused and resumes and isinstance(hybrid, Hybrid):
            rows_at_once, share = self.gradient.micro_rows, plan.train_share
            made = Checkpoint.of(hybrid, optimizer, result.losses, rows_at_once, self.device, share, since)
            result.checkpoint = replace(made, scores=tuple(result.scores))
        if self.best is not None:
            self.best.restore()
        if phase.run is not None:  # a mask may be where it was before the last step
            self.follow([])
        if phase.output is not None:
            with torch.no_grad():
                result.outputs[stage.key] = phase.output()
        self.follow(before)

    def session(
        self, split: EncodedSplit, rows: Rows | None, first: int, learners: list[nn.Parameter]
    ) -> PhaseSession:
        """What a phase that drives itself is handed."""
        hybrid, plan = self.hybrid, self.plan
        return PhaseSession(
            steps=self.stage.steps,
            taken=first,
            take=self.step,
            result=self.result,
            optimizer=self.optimizer,
            backbone=hybrid.backbone_parameters() if isinstance(hybrid, Hybrid) else {},
            forward=Forward(hybrid.model, kind=self.data.task.task_kind),
            gradient=self.gradient,
            drawing=lambda: training_mode(hybrid.model, hybrid.modules.values(), dropout=self.dropout),
            learners=learners,
            task=self.data.task,
            split=split,
            among=share_of_rows(split, plan) if rows is None else rows,
            plan=plan,
        )

    def follow(self, before: list[Collection[object]] | None = None) -> list[Collection[object]]:
        """Where modules act now: the backbone's tensors that each alters, and what acts where on activations
        and rows. The hybrid follows them where that is elsewhere than `before`."""
        if not isinstance(self.hybrid, Hybrid):
            return []
        targets = (getattr(module, "weight_targets", tuple) for module in self.hybrid.modules.values())
        now = [*(tuple(t.key for t in found()) for found in targets), self.hybrid.injection.acting()]
        if before is not None and now != before:
            self.hybrid.refresh()
        return now

    def step(self, step: int, batch: Mapping[str, Tensor] | None = None) -> None:
        """One optimizer step, and the score that is due after it. `step` counts within the phase, events over
        their span, callbacks over all.

        Args:
            batch: what it trains on in place of the next rows.

        Raises:
            NonFiniteLoss: the loss or its gradient is NaN or infinite.
        """
        plan, result, optimizer = self.plan, self.result, self.optimizer
        if self.stage.phase.run is not None:  # which may have moved a mask since
            self.acting = self.follow(self.acting)
        given = next(self.stream) if batch is None else dict(batch)
        taken, start = result.steps, clock(self.device)
        optimizer.schedule(step)
        self.tell("before_step", taken)
        if self.outer is not None:
            self.outer(given, taken)
        loss = self.gradient.accumulate(given, self.owners, optimizer.parameters)
        if not np.isfinite(loss):
            raise NonFiniteLoss("loss", loss, taken + 1, optimizer.highest_rate)
        self.tell("after_backward", taken)
        optimizer.clip(taken)
        self.tell("before_update", taken)
        optimizer.inner.step()
        self.tell("after_step", taken)
        optimizer.inner.zero_grad(set_to_none=True)
        result.losses.append(loss)
        if self.on_step is not None:
            self.on_step(taken + 1, loss)
        result.step_seconds.append(clock(self.device) - start)

        # Score where it is due, by what stands for a metric that would have the model write.
        done = result.steps
        if plan.eval_every is not None and done % plan.eval_every == 0:
            task = self.data.task
            metric = task.task_kind.scorer.trial_metric(get_metric(task.metric)).name
            with generators_kept(self.device):
                score = evaluate(
                    self.hybrid.model, self.data.select, metric,
                    batch_size=plan.eval_rows, device=self.device, forward=self.gradient.forward,
                )  # fmt: skip
            result.scores.append((done, score))
            if self.on_score is not None:
                self.on_score(done, score)
            over = all(settled(module, *self.counted(name, done)) for name, module in self.modules.items())
            if self.best is not None and over and self.best.update(score):
                result.stopped = "patience"

        # End before all steps are done.
        if done == self.until and done < plan.steps:
            result.stopped = "paused"
        if self.should_stop is not None and self.gradient.team.first(self.should_stop()):
            result.stopped = "asked"

    def tell(self, event: str, taken: int) -> None:
        """Tell modules of an event, then policies."""
        for name, module in self.modules.items():
            fire(event, [module], *self.counted(name, taken))
        self.policies.fire(event, self.optimizer.inner.param_groups, *self.counted(None, taken))

    def counted(self, name: str | None, taken: int) -> tuple[int, int]:
        """Step and total, over the span that events count, for a module of that name (`None`: a policy)."""
        own = name is not None and self.stage.part_of(name) == "own"
        span = self.stage.own if own else self.stage.others
        return taken - self.begun["own" if own else "others"], span.steps
