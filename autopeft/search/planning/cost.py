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

__all__ = ["Estimate", "Work", "estimate", "gemm_speed"]

# Of a matrix product's speed, over hybrids of the default space, shortcuts included.
_EFFICIENCY = 0.7
# Of a hybrid's time: the head alone costs next to nothing.
_HEAD = 0.1
_START_SECONDS = 12.0
_PROCESS_BYTES = 450 << 20
_GPU_SPEED = 2e13


@dataclass(frozen=True)
class Work:
    """What one training step and one scored row cost.

    Attributes:
        weights: parameters in the backbone's matrices, embeddings left out.
        layers, hidden: summed over the stacks, and the widest.
        tokens: mean tokens of a row.
        parameters: all backbone parameters.
    """

    weights: int
    layers: int
    hidden: int
    tokens: float
    parameters: int

    @classmethod
    def of(cls, spec: BackboneSpec, tokens: float) -> Work:
        """The work of a backbone on rows of `tokens` tokens."""
        weights = sum(t.size for t in spec.tensors if t.role == "weight")
        layers = sum(s.layers for s in spec.stacks)
        return cls(weights, layers, max(s.hidden for s in spec.stacks), tokens, spec.parameters)

    @property
    def forward(self) -> float:
        """Floating-point operations of one row's forward pass."""
        return 2.0 * self.tokens * self.weights + 4.0 * self.layers * self.tokens**2 * self.hidden

    @property
    def step(self) -> float:
        """Of one row's forward and backward pass; frozen weights need no gradients of their own."""
        return 2.0 * self.forward


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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.randn(512, 768), torch.randn(768, 768)
        torch.mm(a, b)
        count, start = 0, time.process_time()
        while time.process_time() - start < 0.1:
            torch.mm(a, b)
            count += 1
        return count * 2.0 * 512 * 768 * 768 / (time.process_time() - start)
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
    speed: float | None = None,
    gpu: bool = False,
) -> Estimate:
    """Estimate a whole search.

    `planned_steps` are the training steps of the whole search (default: all steps of every trial); `speed`
    is in floating-point operations per second of one worker, and measured where it is `None`; a
    GPU's is a guess.
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
        if b.shots is not None:  # nothing is trained, but examples make rows longer
            tests += fresh * (1 + b.shots) * (1 + round(select_rows / max(test_rows, 1)))
            continue
        runs += (b.sweep_runs + fresh) * (_HEAD if b.kind == "head" else 1.0)
        tests += fresh
    seconds = _START_SECONDS + (runs * trial + tests * test) / max(workers, 1)
    activations = int(34 * batch_size * work.tokens * work.hidden * work.layers * 4)
    memory = workers * (_PROCESS_BYTES + 4 * work.parameters + activations)
    return Estimate(seconds, trial, memory)
