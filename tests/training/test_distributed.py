"""How the rows of a step are shared out, without other processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopeft.training.distributed import ALONE, Team, team_of


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("at_once", [1, 2, 5, 64])
def test_each_row_counts_once_and_all_run_the_layers_as_often(rows: int, size: int, at_once: int) -> None:
    parts_of_all = [list(Team(rank, size).parts(rows, at_once)) for rank in range(size)]
    assert len({len(parts) for parts in parts_of_all}) == 1
    counted = [
        row for parts in parts_of_all for start, stop, counts in parts if counts for row in range(start, stop)
    ]
    assert sorted(counted) == list(range(rows))
    for start, stop, _ in (part for parts in parts_of_all for part in parts):
        assert 0 <= start < stop <= rows
        assert stop - start <= at_once


def test_one_process_alone_asks_nobody() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    assert ALONE.all_reduce(torch.tensor(1.5), [parameter]) == 1.5
    assert torch.equal(parameter.grad, torch.ones(2))
    assert ALONE.first("here") == "here"
    ALONE.align([(("a", "b"), parameter)])
    ALONE.check_equal([(("a", "b"), parameter)])
    assert team_of(nn.Linear(1, 1)) is ALONE
