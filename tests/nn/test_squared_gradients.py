from __future__ import annotations

import torch
from torch import Tensor, nn

from autopeft.nn import squared_gradients


def test_squares_are_of_whole_batches_and_are_summed() -> None:
    torch.manual_seed(0)
    net, idle = nn.Linear(3, 2), nn.Linear(2, 2)
    net.requires_grad_(False)
    held = torch.ones_like(net.weight)
    net.weight.grad = held
    batches = [{"x": torch.randn(4, 3), "y": torch.randn(4, 2)} for _ in range(3)]

    def objective(batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(net(batch["x"]), batch["y"])

    named = {**dict(net.named_parameters()), "idle": idle.weight}
    sums, seen = squared_gradients(named, iter(batches), objective)
    expected = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    same = nn.Linear(3, 2)
    same.load_state_dict(net.state_dict())
    for batch in batches:
        same.zero_grad()
        nn.functional.mse_loss(same(batch["x"]), batch["y"]).backward()
        for name, parameter in same.named_parameters():
            assert parameter.grad is not None
            expected[name] += parameter.grad**2
    assert seen == 3
    for name, value in expected.items():
        torch.testing.assert_close(sums[name], value)
    assert not sums["idle"].any()
    assert net.weight.grad is held
    assert not net.weight.requires_grad
    assert idle.weight.requires_grad


def test_nothing_is_seen_where_there_is_nothing() -> None:
    net = nn.Linear(2, 2)
    sums, seen = squared_gradients(dict(net.named_parameters()), [], lambda batch: net.weight.sum())
    assert seen == 0
    assert not any(value.any() for value in sums.values())
