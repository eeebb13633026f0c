"""Gradients of batches, and what clips them."""

from __future__ import annotations

import pytest
import torch
from support.two_layers import NetObjective, net_of_seed, net_rows
from torch import nn

from autopeft.errors import UsageError
from autopeft.nn import batch_gradients, clip_factor, requiring


def test_they_are_those_of_the_mean_loss_of_each_batch() -> None:
    net, batches = net_of_seed(), net_rows(6, 3)
    apart = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16), requires_grad=False)
    parameters = [*net.base.parameters(), apart]
    found = list(batch_gradients(parameters, batches, NetObjective(net), "x"))
    assert all(not p.requires_grad and p.grad is None for p in parameters)
    net.base.requires_grad_(True)
    for batch, gradients in zip(batches, found, strict=True):
        wanted = torch.autograd.grad(NetObjective(net)(batch), list(net.base.parameters()))
        assert all(torch.equal(g, w) for g, w in zip(gradients[:-1], wanted, strict=True))
        assert torch.equal(gradients[-1], torch.zeros(2))


def test_flags_are_as_before_where_it_ends_early() -> None:
    net = net_of_seed()
    gradients = batch_gradients(list(net.base.parameters()), net_rows(), NetObjective(net), "x")
    next(gradients)
    assert all(p.requires_grad for p in net.base.parameters())
    gradients.close()  # type: ignore[attr-defined]
    assert not any(p.requires_grad for p in net.base.parameters())
    with pytest.raises(KeyError), requiring(net.base.parameters()):
        raise KeyError
    assert not any(p.requires_grad for p in net.base.parameters())


def test_without_a_batch_it_says_so() -> None:
    net = net_of_seed()
    with pytest.raises(UsageError, match="mine needs at least one"):
        list(batch_gradients(list(net.base.parameters()), [], NetObjective(net), "mine"))


@pytest.mark.parametrize("limit", [0.1, 1.0, 100.0])
def test_the_factor_is_that_of_torch(limit: float) -> None:
    parameters = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5))]
    gradients = [torch.randn(3, 4), torch.randn(5)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_(parameters, limit)
    factor = clip_factor(gradients, limit)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient * factor, parameter.grad)
    assert float(clip_factor(gradients, 0.0)) == 1.0
