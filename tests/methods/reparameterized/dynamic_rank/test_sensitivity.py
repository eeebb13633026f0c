from __future__ import annotations

import torch
from autopeft.methods.reparameterized.dynamic_rank.adalora import Sensitivity
from torch import nn


def test_averages_follow_their_recurrences_entry_by_entry() -> None:
    first, second = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(4))
    sensitivity = Sensitivity(10, 0.7, 0.9)
    mean, uncertainty = torch.zeros(10), torch.zeros(10)
    for _ in range(5):
        with torch.no_grad():
            for p in (first, second):
                p.add_(torch.randn(p.shape))
                p.grad = torch.randn(p.shape)
        sensitivity.observe([first, second])
        now = torch.cat([(p * p.grad).abs().flatten() for p in (first, second)]).detach()  # type: ignore[operator]
        mean = 0.7 * mean + 0.3 * now
        uncertainty = 0.9 * uncertainty + 0.1 * (now - mean).abs()
        torch.testing.assert_close(sensitivity.mean, mean)
        torch.testing.assert_close(sensitivity.uncertainty, uncertainty)
    torch.testing.assert_close(sensitivity.score(), mean * uncertainty)
    assert set(sensitivity.state_dict()) == {"mean", "uncertainty"}


def test_what_has_no_gradient_counts_as_insensitive() -> None:
    with_one, without = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    with_one.grad = torch.full((2,), 2.0)
    sensitivity = Sensitivity(5, 0.5, 0.5)
    sensitivity.observe([without, with_one])
    assert sensitivity.mean.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert sensitivity.score().tolist() == [0.0, 0.0, 0.0, 0.5, 0.5]
