"""How long and in what portions one trial trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autopeft.devices import device_named
from autopeft.errors import UsageError, near
from autopeft.recipe import TrainingSection
from autopeft.training.options import HEAD_STARTS

__all__ = ["TrainingPlan"]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything of a trial's training that is not part of its recipe.

    Learning rates, schedule, clipping and policies belong to the recipe; the plan holds what all trials of
    a study share.

    Attributes:
        steps: optimizer steps, all phases together.
        batch_size: rows of one step.
        micro_batch: rows that go through the model at once, in evaluation too; the gradients of a step's
            micro-batches add up to that of the whole batch, except that a route's load-balance loss is their
            mean. `None` means the whole batch.
        eval_batch_size: rows at once in evaluation, where `micro_batch` does not ask for fewer.
        max_length: longest sequence in tokens that the data is encoded to.
        seed: of the new head and modules, the order of the data and the draws of stochastic methods.
        device: as torch names it; `auto` takes an accelerator where there is one (`autopeft.devices`).
        dropout: the backbone's own dropout; `None` leaves it to the recipe (off by default).
        shortcuts: leave out what need not be computed: untouched layers come from stored states (fp16), the
            last layer serves only the positions that are read. No effect with the backbone's dropout.
        learn_all: of a language model's training rows every token is learnt, and not the answers alone.
        packing: lay several texts of a language model in one row of at most `max_length` tokens, none of
            which sees another: the same losses and gradients, in fewer rows. No shortcuts are taken then.
        memory_saving: layers keep no activations for the backward but compute them again (gradient
            checkpointing): the same gradients, less memory, more time.
        eval_every: score every so many steps while training.
        patience: stop after so many scores in a row without a new best one, and return to the best state.
            While a module is not `settled` (AdaLoRA still cuts ranks) its states do not count.
        train_share: train on this share of the training rows; smaller shares lie inside larger ones.
        head_start: of a new head: drawn at `random`, or its last layer fitted to the frozen features of all
            training rows (`probe`; see `autopeft.training.head_start`).

    Raises:
        UsageError: a value is out of range; the message lists every such value.
    """

    steps: int
    batch_size: int = 32
    micro_batch: int | None = None
    eval_batch_size: int = 64
    max_length: int = 128
    seed: int = 0
    device: str = "auto"
    dropout: bool | None = None
    shortcuts: bool = True
    learn_all: bool = False
    packing: bool = False
    memory_saving: bool = False
    eval_every: int | None = None
    patience: int | None = None
    train_share: float = 1.0
    head_start: str = "random"

    def __post_init__(self) -> None:
        lowest = {
            "steps": 1, "batch_size": 1, "micro_batch": 1, "eval_batch_size": 1,
            "max_length": 2, "seed": 0, "eval_every": 1, "patience": 1,
        }  # fmt: skip
        optional = ("micro_batch", "eval_every", "patience")
        problems = []
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                problems.append(f"`{name}` must be an integer of at least {low}, but got {name}={value!r}.")
        if self.head_start not in HEAD_STARTS:
            hint = near(str(self.head_start), HEAD_STARTS)
            problems.append(
                f"`head_start` must be one of {', '.join(HEAD_STARTS)}, but got {self.head_start!r}.{hint}"
            )
        if not 0 < self.train_share <= 1:
            problems.append(f"`train_share` lies above 0, at most 1, but got {self.train_share!r}.")
        if self.patience is not None and self.eval_every is None:
            problems.append("`patience` counts scores taken while training: set `eval_every` as well.")
        if problems:
            raise UsageError(" ".join(problems))

    @property
    def micro_rows(self) -> int:
        """Rows that go through the model at once: `micro_batch`, at most `batch_size`."""
        return self.batch_size if self.micro_batch is None else min(self.micro_batch, self.batch_size)

    @property
    def eval_rows(self) -> int:
        """Rows at once in evaluation: `eval_batch_size`, at most `micro_batch`."""
        return min(self.eval_batch_size, self.micro_batch or self.eval_batch_size)

    def trains_with_dropout(self, training: TrainingSection) -> bool:
        """Whether the backbone's own dropout acts: as the plan says, else the recipe."""
        return training.dropout if self.dropout is None else self.dropout

    def torch_device(self) -> torch.device:
        """The device to train on.

        Raises:
            UsageError: there is none of this name.
        """
        return device_named(self.device)
