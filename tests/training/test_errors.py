"""What counts as memory that did not suffice."""

from __future__ import annotations

import pytest
import torch

from autopeft.training.errors import OutOfMemory, ran_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        OutOfMemory("Even with single rows."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_memory_did_not_suffice(error: BaseException) -> None:
    assert ran_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("could not create a primitive"),
        OSError("std::bad_alloc"),
    ],
)
def test_another_error_is_no_want_of_memory(error: BaseException) -> None:
    assert not ran_out_of_memory(error)
