"""A training that is kept in a folder, and goes on from what is kept there."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from lib.measuring import note
from transformers import PreTrainedModel

KEEP_EVERY = 50
WARM_UP = 0.1
Batch = dict[str, torch.Tensor]


def rate_at(step: int, steps: int) -> float:
    """Warm-up, then a cosine to nothing, as a share of the largest rate."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Training:
    """Steps of an optimizer on a model, from `state.pt` of a folder on where it is there.

    Attributes:
        seconds, cpu: of all steps so far, by the clock and of all cores together.
    """

    def __init__(self, out: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        self.state, self.model, self.optimizer = out / "state.pt", model.train(), optimizer
        self.rate: float = optimizer.defaults["lr"]
        self.seconds, self.cpu, self.losses = 0.0, 0.0, list[float]()
        if self.state.exists():
            kept = torch.load(self.state, weights_only=True)
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.seconds, self.cpu, self.losses = kept["seconds"], kept["cpu"], kept["losses"]
            note(f"going on at step {len(self.losses):,}")

    def step(self, batch: Batch, steps: int) -> None:
        """The next of so many steps."""
        begun, spent = time.perf_counter(), time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate_at(len(self.losses), steps)
        loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(round(float(loss.detach()), 4))
        self.seconds += time.perf_counter() - begun
        self.cpu += time.process_time() - spent
        if len(self.losses) % KEEP_EVERY == 0 or len(self.losses) == steps:
            self.keep(steps)

    def keep(self, steps: int) -> None:
        """Write all that going on takes, and say how far it is."""
        scratch = self.state.with_suffix(".new")
        kept = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**kept, "seconds": self.seconds, "cpu": self.cpu, "losses": self.losses}, scratch)
        scratch.replace(self.state)
        done, mean = len(self.losses), np.mean(self.losses[-KEEP_EVERY:])
        left = self.seconds / done * (steps - done) / 60
        note(f"step {done:,} of {steps:,}: loss {mean:.3f}, about {left:.0f} minutes left")
