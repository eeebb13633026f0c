"""Predictions: the mean of output distributions over the members of a hybrid, and under posteriors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autopeft.hybrid import predictive


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
        total = sum(m.shift() for m in self.autopeft.values() if isinstance(m, Several))
        return torch.cat([x[:, :1] + total, x[:, 1:]], dim=1)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def _explicit(shifts: list[float]) -> Tensor:
    runs = [torch.cat([X[:, :1] + s, X[:, 1:]], dim=1).softmax(-1) for s in shifts]
    return torch.stack(runs).mean(0)


def test_the_mean_is_of_distributions_and_not_of_logits() -> None:
    model = Model(3)
    got = predictive(model, lambda: model(X))
    assert got.shape == X.shape
    torch.testing.assert_close(got.exp(), _explicit([1, 2, 3]))
    mean_of_logits = torch.cat([X[:, :1] + 2, X[:, 1:]], dim=1).softmax(-1)
    assert not torch.allclose(got.exp(), mean_of_logits, atol=1e-3)
    assert model.calls == 3


def test_entries_act_together_as_often_as_the_largest_says_and_others_stay() -> None:
    model = Model(2, 0, 4)
    got = predictive(model, lambda: model(X))
    torch.testing.assert_close(got.exp(), _explicit([2, 4, 6, 8]))
    chosen: Any = [m.chosen for m in model.autopeft.values()]  # type: ignore[union-attr]
    assert chosen == [[0, 1, 2, 3, None], [], [0, 1, 2, 3, None]]


def test_a_regression_has_the_mean() -> None:
    model = Model(3)
    got = predictive(model, lambda: model(X[:, :1]))
    torch.testing.assert_close(got, X[:, :1] + 2)


def test_a_kind_of_task_has_a_mean_of_its_own() -> None:
    """Independent labels: the mean of each one's probability."""
    got = predictive(Model(3), lambda: X + 0.0, mean=lambda logits, dim: logits.amax(dim))
    torch.testing.assert_close(got, X)
    model = Model(3)
    got = predictive(model, lambda: model(X), mean=lambda logits, dim: logits.sigmoid().mean(dim))
    runs = torch.stack([torch.cat([X[:, :1] + s, X[:, 1:]], dim=1) for s in (1, 2, 3)])
    torch.testing.assert_close(got, runs.sigmoid().mean(0))


@pytest.mark.parametrize("model", [Model(0), nn.Linear(3, 3)])
def test_without_an_ensemble_it_is_one_plain_forward(model: nn.Module) -> None:
    out = X.to(torch.bfloat16)
    calls = []

    def run() -> Tensor:
        calls.append(1)
        return out

    assert predictive(model, run) is out
    assert calls == [1]


def test_a_failing_forward_leaves_no_member_chosen() -> None:
    model = Model(2)

    def fail() -> Tensor:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        predictive(model, fail)
    assert model.autopeft["h0"].member is None


class Normal(nn.Module):
    """Says that the logits have this covariance in every row."""

    def __init__(self, covariance: Tensor, samples: int = 200_000) -> None:
        super().__init__()
        self.samples = samples
        self.known = covariance
        self.recorded: list[bool] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.recorded.append(True)
        try:
            yield
        finally:
            self.recorded.append(False)

    def covariance(self, logits: Tensor) -> Tensor:
        assert self.recorded[-1]
        assert torch.is_grad_enabled()
        assert logits.dtype == torch.float32
        return self.known.expand(len(logits), -1, -1)


def _under(*normals: Normal, members: int = 0) -> Model:
    model = Model(*([members] if members else []))
    model.autopeft.update({f"n{i}": n for i, n in enumerate(normals)})
    return model


def _root(seed: int) -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))


def _expected(logits: Tensor, covariance: Tensor) -> Tensor:
    root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(3))
    draws = torch.randn(200_000, 1, 3, generator=torch.Generator().manual_seed(77))
    return (logits + draws @ root.T).softmax(-1).mean(0)


def test_under_a_posterior_it_is_the_mean_over_joint_samples() -> None:
    covariance = 4 * _root(1) @ _root(1).T
    model = _under(Normal(covariance))
    with torch.no_grad():
        got = predictive(model, lambda: model(X).to(torch.bfloat16).float())
        logits = model(X).to(torch.bfloat16).float()
    torch.testing.assert_close(got.exp(), _expected(logits, covariance), atol=5e-3, rtol=0)
    diagonal = _expected(logits, covariance.diagonal().diag())
    assert float((got.exp() - diagonal).abs().max()) > 0.02, "classes are sampled together"
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(5))


def test_posteriors_add_and_one_without_samples_is_left_out() -> None:
    first, second = _root(1) @ _root(1).T, _root(2) @ _root(2).T
    both = _under(Normal(first), Normal(second, samples=5), Normal(9 * first, samples=0))
    summed = _under(Normal(first + second))
    torch.testing.assert_close(
        predictive(both, lambda: both(X)), predictive(summed, lambda: summed(X)), atol=1e-5, rtol=1e-5
    )
    recorded: Any = [n.recorded for n in both.autopeft.values()]  # type: ignore[union-attr]
    assert recorded == [[True, False], [True, False], []]


def test_a_sample_is_the_same_for_every_row_and_call() -> None:
    model = _under(Normal(_root(1) @ _root(1).T, samples=7))
    state = torch.get_rng_state()
    got = predictive(model, lambda: model(X))
    rows = [predictive(model, lambda row=row: model(row)) for row in X.split(1)]  # type: ignore[misc]
    torch.testing.assert_close(torch.cat(rows), got, atol=1e-6, rtol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_beyond_what_is_sampled_at_once_are_no_different(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _under(Normal(_root(1) @ _root(1).T, samples=50))
    whole = predictive(model, lambda: model(X))
    monkeypatch.setattr("autopeft.hybrid.prediction._AT_ONCE", 2 * 50 * 3)
    torch.testing.assert_close(predictive(model, lambda: model(X)), whole)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e8])
def test_singular_covariances_of_any_scale_can_be_sampled(scale: float) -> None:
    column = _root(3)[:, :1]
    model = _under(Normal(scale * column @ column.T))
    got = predictive(model, lambda: model(X))
    assert bool(got.isfinite().all())
    if scale < 1:
        torch.testing.assert_close(got.exp(), X.softmax(-1), atol=1e-4, rtol=0)


def test_members_have_a_posterior_each_and_a_regression_none() -> None:
    covariance = _root(1) @ _root(1).T
    model = _under(Normal(covariance), members=2)
    expected = torch.stack([_expected(X + torch.tensor([s, 0.0, 0.0]), covariance) for s in (1, 2)])
    got = predictive(model, lambda: model(X))
    torch.testing.assert_close(got.exp(), expected.mean(0), atol=5e-3, rtol=0)
    torch.testing.assert_close(predictive(model, lambda: model(X[:, :1])), X[:, :1] + 1.5)
