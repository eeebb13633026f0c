"""What can go wrong while a valid trial runs."""

from __future__ import annotations

import torch

from autopeft.errors import AutoPEFTError, UsageError

__all__ = ["NonFiniteLoss", "OutOfMemory", "PhaseError", "ran_out_of_memory"]

# On a CPU torch raises a plain RuntimeError, and its libraries let C++'s own error through.
_CPU_SAYS = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")
# oneDNN says no more where it has no room for the code of an operation; what it cannot do has other words.
_ONEDNN_SAYS = "could not create a primitive"


class NonFiniteLoss(AutoPEFTError):  # noqa: N818
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: the step (1-based) at which it happened.
        learning_rate: the highest learning rate of any group at that step.
    """

    def __init__(self, what: str, value: float, step: int, learning_rate: float) -> None:
        self.step = step
        self.learning_rate = learning_rate
        super().__init__(
            f"The {what} is {value} at step {step} (highest learning rate {learning_rate:.3g}). "
            "Lower the learning rate, lengthen the warm-up, or train in fp32."
        )


class OutOfMemory(AutoPEFTError):  # noqa: N818
    """Memory did not suffice, even for smaller micro-batches."""


class PhaseError(UsageError):
    """The phases that methods declare cannot be run together, or name what does not exist."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory did not suffice, an accelerator's or the machine's own."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    if said == _ONEDNN_SAYS or any(words in said for words in _CPU_SAYS):
        return True
    return isinstance(error, (OutOfMemory, torch.OutOfMemoryError, MemoryError))
