from __future__ import annotations

import pytest
import torch
from torch import nn

from autopeft.training import memory
from autopeft.training.errors import OutOfMemory
from autopeft.training.memory import with_fewer_rows

MODEL = nn.Linear(2, 2)


def test_it_begins_again_with_half_as_many_rows_from_the_same_random_state() -> None:
    tried, drawn = list[int](), list[float]()

    def act(rows: int) -> str:
        tried.append(rows)
        drawn.append(float(torch.rand(())))
        if rows > 1:
            raise torch.OutOfMemoryError("full")
        return "done"

    assert with_fewer_rows(act, 7, MODEL, doing="It") == "done"
    assert tried == [7, 3, 1]
    assert len(set(drawn)) == 1


def test_single_rows_that_do_not_fit_are_an_error_and_other_errors_are_not_ours() -> None:
    def full(rows: int) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="It ran out of memory even with single rows; lower `max_length`"):
        with_fewer_rows(full, 3, MODEL, doing="It")

    def wrong(rows: int) -> None:
        tried.append(rows)
        raise RuntimeError("shapes differ")

    tried = list[int]()
    with pytest.raises(RuntimeError, match="shapes differ"):
        with_fewer_rows(wrong, 3, MODEL, doing="It")
    assert tried == [3]


def test_one_of_several_processes_does_not_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it where it is not any more."""

    class Pair:
        size = 2

    def full(rows: int) -> None:
        tried.append(rows)
        raise torch.OutOfMemoryError("full")

    tried = list[int]()
    monkeypatch.setattr(memory, "team_of", lambda model: Pair())
    with pytest.raises(OutOfMemory, match="It ran out of memory with 8 rows at once; lower --micro-batch"):
        with_fewer_rows(full, 8, MODEL, doing="It")
    assert tried == [8]
