"""Test-time ensembles: the mean of output distributions over the members of a hybrid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autopeft.hybrid import ensembled


class Several(nn.Module):
    """Stands for `members` models, of which member i adds i + 1 to the first logit."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members
        self.member: int | None = None
        self.chosen: list[int | None] = []

    def choose(self, member: int | None) -> None:
        self.member = member
        self.chosen.append(member)

    def shift(self) -> float:
        return 0.0 if self.member is None else self.member + 1.0


class Model(nn.Module):
    def __init__(self, *members: int, classes: int = 3) -> None:
        super().__init__()
        self.autopeft = nn.ModuleDict({f"h{i}": Several(n) for i, n in enumerate(members)})
        self.classes = classes
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        total = sum(m.shift() for m in self.autopeft.values())  # type: ignore[operator, misc]
        return torch.cat([x[:, :1] + total, x[:, 1:]], dim=1)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def _explicit(shifts: list[float]) -> Tensor:
    runs = [torch.cat([X[:, :1] + s, X[:, 1:]], dim=1).softmax(-1) for s in shifts]
    return torch.stack(runs).mean(0)


def test_the_mean_is_of_distributions_and_not_of_logits() -> None:
    model = Model(3)
    got = ensembled(model, lambda: model(X))
    assert got.shape == X.shape
    torch.testing.assert_close(got.exp(), _explicit([1, 2, 3]))
    mean_of_logits = torch.cat([X[:, :1] + 2, X[:, 1:]], dim=1).softmax(-1)
    assert not torch.allclose(got.exp(), mean_of_logits, atol=1e-3)
    assert model.calls == 3


def test_entries_act_together_as_often_as_the_largest_says_and_others_stay() -> None:
    model = Model(2, 0, 4)
    got = ensembled(model, lambda: model(X))
    torch.testing.assert_close(got.exp(), _explicit([2, 4, 6, 8]))
    chosen: Any = [m.chosen for m in model.autopeft.values()]  # type: ignore[union-attr]
    assert chosen == [[0, 1, 2, 3, None], [], [0, 1, 2, 3, None]]


def test_a_regression_has_the_mean() -> None:
    model = Model(3)
    got = ensembled(model, lambda: model(X[:, :1]))
    torch.testing.assert_close(got, X[:, :1] + 2)


@pytest.mark.parametrize("model", [Model(0), nn.Linear(3, 3)])
def test_without_an_ensemble_it_is_one_plain_forward(model: nn.Module) -> None:
    out = X.to(torch.bfloat16)
    calls = []

    def run() -> Tensor:
        calls.append(1)
        return out

    assert ensembled(model, run) is out
    assert calls == [1]


def test_a_failing_forward_leaves_no_member_chosen() -> None:
    model = Model(2)

    def fail() -> Tensor:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        ensembled(model, fail)
    assert model.autopeft["h0"].member is None
