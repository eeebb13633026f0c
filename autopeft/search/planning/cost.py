"""Time and memory of a search before it starts: from arithmetic counts and this machine's measured speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autopeft.effort import Effort
from autopeft.search.selection.baselines import Baseline

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec

__all__ = ["Estimate", "Work", "Writing", "estimate", "gemm_speed"]

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
class Work:
    """What one training step and one scored row cost.

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
    def step(self) -> float:
        """Of one row's forward and backward pass; frozen weights need no gradients of their own."""
        return 2.0 * self.forward

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
        """How many answers are written in all, and how many tokens one has at most."""
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


def gemm_speed() -> float:
    """Operations per second of processor time of a matrix product on one thread, measured for about 0.1 s.

    Processor time, so that other programs on the machine do not make it look slow.
    """
    return _product_speed(512, 768, 1)


def writing_speed(rows: int) -> float:
    """The same where answers are written: few rows at once, and weights that no cache holds."""
    return _product_speed(max(1, rows), 2048, 4)


def _product_speed(rows: int, width: int, matrices: int) -> float:
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

    `at_once` rows of a batch go through the model together (default: all of them), whose weights take
    `weight_bytes` each; with `memory_saving` each layer keeps its input alone. `planned_steps` are the
    training steps of the whole search (default: all steps of every trial); `speed` is in floating-point
    operations per second of one worker, and measured where it is `None`; a GPU's is a guess. So is what
    `writing` takes: that of answers as long as any.
    """
    rate = _EFFICIENCY * (speed or (_GPU_SPEED if gpu else gemm_speed()))
    score = select_rows * work.forward / rate
    training = effort.steps * batch_size * work.step / rate
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
    if writing is not None:
        answers = _written(work, writing, *writing.rows(effort, baselines, test_rows), rate, gpu)
    seconds = _START_SECONDS + (runs * trial + tests * test + answers) / max(workers, 1)
    layers = 1 + work.layers / _ACTIVATIONS if memory_saving else work.layers
    numbers = _ACTIVATIONS * (at_once or batch_size) * work.tokens * work.hidden * layers
    memory = workers * (_PROCESS_BYTES + weight_bytes * work.parameters + int(4 * numbers))
    return Estimate(seconds, trial, memory)


def _written(work: Work, writing: Writing, rows: int, tokens: int, rate: float, gpu: bool) -> float:
    """Seconds that so many answers take: their prompts once more, then token by token."""
    if not rows:
        return 0.0
    speed = _GPU_WRITING if gpu else writing_speed(min(writing.at_once, rows))
    return rows * (work.forward / rate + tokens * work.token / (_EFFICIENCY * speed))
