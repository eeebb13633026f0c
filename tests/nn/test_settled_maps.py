from __future__ import annotations

import pytest
import torch
from torch import nn

from autopeft.nn import Bottleneck, SettledAdapter, SettledPair, drop_path

IN, OUT, RANK = 6, 5, 3


def pair(**drops: float) -> SettledPair:
    return SettledPair(IN, OUT, RANK, **{"dropout": 0.0, "drop_path": 0.0, **drops})


def adapter(**drops: float) -> SettledAdapter:
    return SettledAdapter(OUT, RANK, **{"dropout": 0.0, "drop_path": 0.0, **drops})


@pytest.mark.parametrize(
    ("child", "size"), [(pair(), RANK * (IN + OUT)), (adapter(), Bottleneck.size(OUT, RANK))]
)
def test_it_is_nothing_or_all_of_it(child: SettledPair | SettledAdapter, size: int) -> None:
    keys = list(child.state_dict())
    assert sum(p.numel() for p in child.parameters()) == 0
    for there in (True, False, True):
        child.put_in() if there else child.leave_out()
        assert child.there is there
        assert child.cost == size
        assert sum(p.numel() for p in child.parameters()) == (size if there else 0)
        assert list(child.state_dict()) == keys
        assert all(p.requires_grad for p in child.parameters())
    assert not child.added(torch.randn(2, 4, IN), torch.randn(2, 4, OUT)).any(), "zero at init"


def test_a_pair_reads_what_the_map_reads_and_an_adapter_what_it_yields() -> None:
    x, y = torch.randn(2, 4, IN), torch.randn(2, 4, OUT)
    low, behind = pair(), adapter()
    for child in (low, behind):
        child.put_in()
        for parameter in child.parameters():
            nn.init.normal_(parameter)
    torch.testing.assert_close(low.added(x, y), x @ low.A.T @ low.B.T)
    down, up = behind.inner.down, behind.inner.up
    expected = nn.functional.linear(
        nn.functional.gelu(nn.functional.linear(y, down.weight, down.bias)), up.weight
    )
    torch.testing.assert_close(behind.added(x, y), expected + up.bias)


@pytest.mark.parametrize("child", [pair(dropout=0.5), adapter(dropout=0.5)])
def test_dropout_is_that_of_training(child: SettledPair | SettledAdapter) -> None:
    child.put_in()
    for parameter in child.parameters():
        nn.init.normal_(parameter)
    x, y = torch.randn(2, 4, IN), torch.randn(2, 4, OUT)
    child.train()
    assert not torch.equal(child.added(x, y), child.added(x, y))
    child.eval()
    assert torch.equal(child.added(x, y), child.added(x, y))


def test_whole_rows_are_dropped_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    y = torch.ones(4000, 3, 2)
    dropped = drop_path(y, 0.25, True)
    assert dropped.flatten(1).unique(dim=0)[:, 0].tolist() == pytest.approx([0.0, 4 / 3])
    assert float((dropped[:, 0, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.04)
    assert drop_path(y, 0.25, False) is y
    assert drop_path(y, 0.0, True) is y
