from __future__ import annotations

import torch

from autopeft.nn import LowRankPair


def test_starts_at_zero_and_is_the_product_of_its_factors() -> None:
    pair = LowRankPair(6, 4, 2)
    x = torch.randn(3, 5, 6)
    assert torch.equal(pair(x), torch.zeros(3, 5, 4))
    torch.nn.init.normal_(pair.B)
    torch.testing.assert_close(pair(x), x @ pair.product().T)
    assert torch.linalg.matrix_rank(pair.product()) == 2


def test_dropout_only_while_training() -> None:
    pair = LowRankPair(64, 4, 2, dropout=0.5)
    torch.nn.init.normal_(pair.B)
    x = torch.randn(1, 64)
    torch.manual_seed(0)
    assert torch.equal(pair.eval()(x), pair(x))
    assert not torch.equal(pair.train()(x), pair(x))


def test_it_can_hold_factors_of_another_rank() -> None:
    pair = LowRankPair(4, 5, 3)
    a, b = torch.randn(2, 4), torch.randn(5, 2)
    pair.hold(a, b)
    assert all(p.requires_grad for p in pair.parameters())
    torch.testing.assert_close(pair.product(), b @ a)
    a.zero_()
    assert bool(pair.A.any())
    pair.hold(torch.empty(0, 4), torch.empty(5, 0))
    assert torch.equal(pair(torch.randn(3, 4)), torch.zeros(3, 5))
