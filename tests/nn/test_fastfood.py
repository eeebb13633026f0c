from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor

from autopeft.nn import Fastfood, generator_of
from autopeft.nn import fastfood as module


def factors(f: Fastfood) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """H, G, Π and B (with ones where z has ended) as dense matrices, from the draws themselves."""
    generator = generator_of(f.seed, f.name)
    n = f.length
    places = torch.randperm(n, generator=generator, dtype=torch.int32).long()
    gauss = torch.randn(n, generator=generator).bfloat16()
    signs = torch.ones(n, dtype=torch.float64)
    signs[: f.used] = torch.randint(0, 2, (f.used,), generator=generator).double() * 2 - 1
    h = torch.from_numpy(hadamard(n)).double()
    return h, torch.diag(gauss.double()), torch.eye(n, dtype=torch.float64)[places], torch.diag(signs)


def dense(f: Fastfood, dimension: int) -> Tensor:
    """F as a matrix (size × dimension), written as in the paper."""
    h, g, pi, b = factors(f)
    n = f.length
    pad = torch.zeros(n, dimension, dtype=torch.float64)
    pad[: f.used, : f.used] = torch.eye(f.used, dtype=torch.float64)
    divisor = (n * g.diagonal().square().sum()).sqrt() * (f.size / n) ** 0.5
    return (h @ g @ pi @ h @ b @ pad)[: f.size] / divisor


def one() -> Tensor:
    return torch.ones((), dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "dimension"), [(1, 3), (2, 1), (5, 3), (8, 8), (100, 7), (96, 300), (1000, 64), (1024, 1)]
)
def test_equals_the_product_of_the_five_matrices(size: int, dimension: int) -> None:
    f = Fastfood(size, dimension, seed=3, name="x.weight")
    matrix = dense(f, dimension)
    z = torch.randn(dimension, dtype=torch.float64)
    torch.testing.assert_close(f(z, one()), matrix @ z)
    y = torch.randn(size, dtype=torch.float64)
    torch.testing.assert_close(f.adjoint(y), (matrix.T @ y)[: f.used])


@pytest.mark.parametrize(("size", "dimension"), [(100_000, 1000), (60_000, 4096), (147_456, 200)])
def test_keeps_the_norm_of_z_within_ten_percent(size: int, dimension: int) -> None:
    for number in range(3):
        f = Fastfood(size, dimension, seed=number, name="w")
        z = torch.randn(dimension, generator=torch.Generator().manual_seed(number))
        assert 0.9 < float(f(z, torch.ones(())).norm() / z.norm()) < 1.1


def test_a_z_longer_than_the_tensor_acts_by_its_first_entries_alone() -> None:
    f = Fastfood(6, 40, seed=0, name="bias")
    z = torch.randn(40, requires_grad=True)
    other = torch.cat([z[:8].detach(), torch.randn(32)])
    assert torch.equal(f(z, torch.ones(())), f(other, torch.ones(())))
    f(z, torch.ones(())).sum().backward()
    assert z.grad is not None
    assert z.grad[:8].abs().min() > 0
    assert not z.grad[8:].any()


def test_gradients_are_true_ones() -> None:
    f = Fastfood(11, 6, seed=0, name="w")
    inputs = (
        torch.randn(6, dtype=torch.float64, requires_grad=True),
        torch.randn((), dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda z, scale: f(z, scale), inputs)


class Damped(torch.autograd.Function):
    """A Hadamard step whose backward divides by √n, as the authors' code has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor) -> Tensor:
        ctx.h = h
        return h @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.h @ grads[0] / len(ctx.h) ** 0.5, None


def test_the_gradient_of_the_reference_is_that_of_two_damped_hadamard_steps() -> None:
    f = Fastfood(11, 6, seed=0, name="w")
    h, g, pi, b = factors(f)
    start, upstream = torch.randn(6, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    grads = []
    for ours in (True, False):
        z, scale = start.clone().requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        if ours:
            out = f(z, scale, reference_grad=True)
        else:
            padded = torch.nn.functional.pad(z, (0, f.length - 6))
            mixed = Damped.apply(g @ pi @ Damped.apply(b @ padded, h), h)[:11]
            out = scale * mixed / (11 * g.diagonal().square().sum()).sqrt()
        (out * upstream).sum().backward()
        grads.append((out.detach(), z.grad, scale.grad))
    for own, reference in zip(*grads, strict=True):
        torch.testing.assert_close(own, reference)
    z = start.clone().requires_grad_()
    (f(z, torch.tensor(1.5, dtype=torch.float64)) * upstream).sum().backward()
    torch.testing.assert_close(z.grad, grads[0][1] * f.length)


def test_seed_and_name_decide_and_torchs_global_generator_is_left_alone() -> None:
    z = torch.randn(5)
    before = torch.get_rng_state()
    out = [Fastfood(40, 5, *key)(z, torch.ones(())) for key in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(out[0], out[1])
    assert not torch.allclose(out[0], out[2])
    assert not torch.allclose(out[0], out[3])


def test_chunks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    f, z, y = Fastfood(3000, 50, 0, "w"), torch.randn(50), torch.randn(3000)
    out, back = f(z, torch.ones(())), f.adjoint(y)
    monkeypatch.setattr(module, "_CHUNK", 700)
    assert torch.equal(f(z, torch.ones(())), out)
    torch.testing.assert_close(f.adjoint(y), back)


@pytest.mark.parametrize(("dimension", "each"), [(300, 4), (32_768, 4), (32_769, 6)])
def test_what_is_kept_is_small_and_drawn_late(dimension: int, each: int) -> None:
    f = Fastfood(70_000, dimension, 0, "w")
    assert f._drawn is None
    _, places, gauss, _ = f._frozen(torch.device("cpu"))
    held = sum(t.numel() * t.element_size() for t in (places, gauss))
    assert held == each * f.length == each * 131_072
    assert torch.equal(places.int().bincount(), torch.full((f.period,), f.length // f.period))


def test_copies_share_the_draws_and_pickles_leave_them_out() -> None:
    f, z = Fastfood(5000, 50, 0, "w"), torch.randn(50)
    out = f(z, torch.ones(()))
    assert copy.deepcopy(f)._drawn is f._drawn
    packed = pickle.dumps(f)
    assert len(packed) < 1000
    assert torch.equal(pickle.loads(packed)(z, torch.ones(())), out)


def test_a_vector_in_half_precision_is_projected_in_fp32() -> None:
    f, z = Fastfood(100, 9, 0, "w"), torch.randn(9).bfloat16()
    out = f(z, torch.ones((), dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    assert torch.equal(out, f(z.float(), torch.ones(())))
