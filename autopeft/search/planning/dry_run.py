"""A dry run: what a search would do, and the time and memory that it would take, without starting it.

The estimates follow from arithmetic counts and this machine's measured speed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from autopeft.arguments import takes
from autopeft.counting import Counts
from autopeft.effort import Effort
from autopeft.errors import AutoPEFTError
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import TrainJob
from autopeft.search.planning.arguments import PlanCall, SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.finals import FinalWork
from autopeft.search.selection.time_budget import TimeBudget
from autopeft.search.space.candidate import candidate, share_within
from autopeft.search.strategies.registry import STRATEGIES
from autopeft.spec import BackboneSpec
from autopeft.tasks.kinds import get_metric
from autopeft.training.samples import HANDFUL, MOST_TOKENS

__all__ = [
    "DryRun",
    "Estimate",
    "Sample",
    "Work",
    "Writing",
    "estimate",
    "estimate_of",
    "gemm_speed",
    "plan",
]

_PROBE = 200
# Of a matrix product's speed, over hybrids of the default space, shortcuts included.
_EFFICIENCY = 0.7
# Of a hybrid's time: the head alone costs next to nothing.
_HEAD = 0.1
_START_SECONDS = 12.0
_PROCESS_BYTES = 450 << 20
_ACTIVATIONS = 34  # numbers that a layer keeps for each token and unit of width
_GPU_SPEED = 2e13
_GPU_WRITING = 2e12
_MEASURED = 0.1  # seconds of a measurement


@dataclass(frozen=True)
class Sample:
    """A recipe that a search could try, and its counts."""

    recipe: Recipe
    counts: Counts


@dataclass(frozen=True)
class DryRun:
    """What a search would do.

    Attributes:
        cardinality: recipes of the space before the budget; infinite where it has a continuous parameter.
        feasible: share of random members that fit the budget without repair.
        first: the recipes that it begins with, from the runs and recipes of `warm_start`.
        estimate: time and memory.
    """

    prepared: Prepared
    cardinality: int | float
    feasible: float
    first: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    baselines: tuple[Baseline, ...]
    estimate: Estimate


@takes(PlanCall)
def plan(call: PlanCall) -> DryRun:
    """Say what `search` with these arguments would do, without starting anything.

    Args:
        {arguments}

    Raises:
        UsageError: an argument is wrong, nothing in the space fits the budget, or nothing can be taken from
            a run or recipe of `warm_start`.
    """
    ready = prepare(call.base(SearchArguments), call.notify)
    rng, bound = random.Random(ready.arguments.seed), ready.space.bind(ready.spec)
    points, notices = ready.named_points()
    first: dict[str, Sample] = {}
    for point in points:
        try:
            begun = candidate(bound, point, ready.budget)
        except AutoPEFTError as error:
            notices.append(str(error))
            continue
        first.setdefault(begun.hash, Sample(begun.recipe, begun.counts))
    if call.notify is not None:
        for line in notices:
            call.notify(line)
    found: dict[str, Sample] = {}
    for _ in range(20 * call.samples):
        if len(found) >= call.samples:
            break
        try:
            drawn = candidate(bound, bound.sample(rng), ready.budget)
        except AutoPEFTError:  # nothing near this point fits; a search skips it too
            continue
        found.setdefault(drawn.hash, Sample(drawn.recipe, drawn.counts))
    baselines = ready.baselines()
    return DryRun(
        prepared=ready,
        cardinality=bound.cardinality(),
        feasible=share_within(bound, ready.budget, n=_PROBE, seed=ready.arguments.seed),
        first=tuple(first.values()),
        samples=tuple(found.values()),
        baselines=tuple(baselines),
        estimate=estimate_of(ready, baselines),
    )


def estimate_of(ready: Prepared, baselines: Sequence[Baseline]) -> Estimate:
    """Time and memory of a search with these baselines. A time budget bounds the time, except for what is
    trained in any case: two trials and the shortest finals."""
    task, kind = ready.task, ready.task.task_kind
    longest, writing = ready.summary.use.get("max_new_tokens"), None
    if kind.scorer.writes and isinstance(longest, int) and kind.encoder.asks(task.splits["test"]):
        samples = None if get_metric(task.metric).generated else HANDFUL
        writing = Writing(longest, samples, MOST_TOKENS, ready.plan.eval_rows)
    found = estimate(
        Work.of(
            ready.spec, kind.encoder.positions(task.splits["train"], ready.source, ready.plan.max_length)
        ),
        ready.effort,
        planned_steps=STRATEGIES.find(ready.arguments.strategy).planned_steps(ready.effort, ready.rungs),
        batch_size=ready.plan.batch_size,
        at_once=ready.plan.micro_rows,
        weight_bytes=2 if ready.arguments.precision == "bf16" else 4,
        memory_saving=ready.plan.memory_saving,
        select_rows=len(task.splits["select"]),
        test_rows=len(task.splits["test"]),
        workers=ready.workers or 1,
        baselines=baselines,
        gpu=ready.gpus > 0,
        writing=writing,
    )
    if ready.seconds is None:
        return found
    # Two trials and the shortest finals are trained whatever the time limit.
    limit, trial = TimeBudget(ready.effort, ready.workers or 1), found.trial_seconds
    limit.finished(TrainJob("trial", "trial", "a trial", {}, steps=ready.effort.steps), trial)
    least = FinalWork(baselines, ready.arguments.seed).least(ready.effort, limit.seconds)
    shortest = (2 * trial + limit.seconds(least)) / limit.workers
    return replace(found, seconds=min(found.seconds, max(ready.seconds, shortest)))


# Estimates
# --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """The arithmetic of one training step and of one scored row.

    Attributes:
        weights: parameters in the backbone's matrices, embeddings left out.
        layers, hidden: summed over the stacks, and the widest.
        tokens: mean tokens of a row.
        parameters: all backbone parameters.
        vocabulary: of them those of the largest embedding, which language models also project by.
    """

    weights: int
    layers: int
    hidden: int
    tokens: float
    parameters: int
    vocabulary: int = 0

    @classmethod
    def of(cls, spec: BackboneSpec, tokens: float) -> Work:
        """The work of a backbone on rows of `tokens` tokens."""
        weights = sum(t.size for t in spec.tensors if t.role == "weight")
        layers = sum(s.layers for s in spec.stacks)
        words = max((t.size for t in spec.tensors if t.role == "embedding"), default=0)
        return cls(weights, layers, max(s.hidden for s in spec.stacks), tokens, spec.parameters, words)

    @property
    def forward(self) -> float:
        """Floating-point operations of one row's forward pass."""
        return 2.0 * self.tokens * self.weights + 4.0 * self.layers * self.tokens**2 * self.hidden

    @property
    def token(self) -> float:
        """Of one more token of an answer, with keys and values of those before it kept."""
        return 2.0 * (self.weights + self.vocabulary) + 4.0 * self.layers * self.tokens * self.hidden


@dataclass(frozen=True)
class Writing:
    """The answers that runs after the search write.

    Attributes:
        tokens: of an answer, at most.
        samples: rows that the winner and LoRA write to where the metric compares no answers; `None` where it
            does, so that the winner and baselines write to every row of *test*. *Select* is scored by what
            needs no answers.
        sample_tokens: of an answer that is written for its sample alone, at most.
        at_once: rows at once.
    """

    tokens: int
    samples: int | None = None
    sample_tokens: int = 0
    at_once: int = 64

    def rows(self, effort: Effort, baselines: Sequence[Baseline], test_rows: int) -> tuple[int, int]:
        """The number of answers in all, and the most tokens of one."""
        fresh = {b.kind: b.fresh_runs(effort.seeds) for b in baselines}
        if self.samples is not None:
            rows = self.samples * (1 + fresh.get("lora", 0))
            return rows, min(self.tokens, self.sample_tokens)
        runs = effort.seeds + sum(b.fresh_runs(effort.seeds) for b in baselines)
        return runs * test_rows, self.tokens


@dataclass(frozen=True)
class Estimate:
    """Wall seconds of the whole run, seconds of one trial, and bytes of memory of all workers."""

    seconds: float
    trial_seconds: float
    memory: int


def gemm_speed(rows: int = 512, width: int = 768, matrices: int = 1) -> float:
    """Operations per second of processor time of a matrix product on one thread, measured for about 0.1 s.

    Processor time, so that other programs on the machine do not make it look slow.

    Args:
        rows, width: of a product (rows, width) × (width, width).
        matrices: that take turns, so that no cache holds them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, weights = torch.randn(rows, width), [torch.randn(width, width) for _ in range(matrices)]
        torch.mm(a, weights[0])
        count, taken, start = 0, 0.0, time.process_time()
        while taken < _MEASURED:
            torch.mm(a, weights[count % matrices])
            count, taken = count + 1, time.process_time() - start
        return count * 2.0 * rows * width * width / taken
    finally:
        torch.set_num_threads(before)


def estimate(
    work: Work,
    effort: Effort,
    *,
    planned_steps: float | None = None,
    batch_size: int,
    select_rows: int,
    test_rows: int,
    workers: int,
    baselines: Sequence[Baseline],
    at_once: int | None = None,
    weight_bytes: int = 4,
    memory_saving: bool = False,
    speed: float | None = None,
    gpu: bool = False,
    writing: Writing | None = None,
) -> Estimate:
    """Estimate a whole search.

    Args:
        planned_steps: training steps of all trials; default: all steps of every trial.
        at_once: rows of a batch that go through the model together; default: all of them.
        weight_bytes: bytes of a parameter of the backbone.
        memory_saving: whether each layer keeps its input alone.
        speed: floating-point operations per second of one worker; `None` measures it, and guesses a GPU's.
        writing: the answers to write; each counts as long as the longest.
    """
    rate = _EFFICIENCY * (speed or (_GPU_SPEED if gpu else gemm_speed()))
    score = select_rows * work.forward / rate
    # A step goes forward and back; frozen weights need no gradients of their own.
    training = effort.steps * batch_size * 2.0 * work.forward / rate
    trial = training + score
    test = test_rows * work.forward / rate
    steps = effort.trials * effort.steps if planned_steps is None else planned_steps
    runs = steps / effort.steps + effort.top * effort.seeds
    tests = effort.seeds
    for b in baselines:
        fresh = b.fresh_runs(effort.seeds)
        if b.shots is not None:  # nothing is trained, and examples before all rows are read once
            tests += fresh * (1 + round(select_rows / max(test_rows, 1)))
            continue
        runs += (b.sweep_runs + fresh) * (_HEAD if b.kind == "head" else 1.0)
        tests += fresh
    answers = 0.0
    written, tokens = (0, 0) if writing is None else writing.rows(effort, baselines, test_rows)
    if writing is not None and written:
        # Their prompts once more, then token by token: few rows at once, and weights that no cache holds.
        at_a_time = max(1, min(writing.at_once, written))
        product = _GPU_WRITING if gpu else gemm_speed(at_a_time, 2048, 4)
        answers = written * (work.forward / rate + tokens * work.token / (_EFFICIENCY * product))
    seconds = _START_SECONDS + (runs * trial + tests * test + answers) / max(workers, 1)
    layers = 1 + work.layers / _ACTIVATIONS if memory_saving else work.layers
    numbers = _ACTIVATIONS * (at_once or batch_size) * work.tokens * work.hidden * layers
    memory = workers * (_PROCESS_BYTES + weight_bytes * work.parameters + int(4 * numbers))
    return Estimate(seconds, trial, memory)
