from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard
from torch import Tensor

from autopeft.nn import hadamard as module
from autopeft.nn import walsh_hadamard

SIZES = [1, 2, 8, 32, 64, 128, 1024, 2048]


def whole(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sylvester's matrix, from another hand."""
    return torch.from_numpy(hadamard(n)).to(dtype)


def integers(n: int) -> Tensor:
    """Small integers: their sums are exact in fp32, so that results are equal bit for bit."""
    return torch.randint(-9, 10, (n,), generator=torch.Generator().manual_seed(n)).float()


@pytest.mark.parametrize("n", SIZES)
def test_equals_multiplication_by_the_sylvester_matrix(n: int) -> None:
    x = integers(n)
    before = x.clone()
    assert torch.equal(walsh_hadamard(x), whole(n) @ x)
    assert torch.equal(x, before)


def test_levels_beyond_the_first_two_products() -> None:
    """64 × 64 × 2: the two halves' transforms, added and subtracted."""
    x = integers(8192)
    low, high = walsh_hadamard(x[:4096]), walsh_hadamard(x[4096:])
    assert torch.equal(walsh_hadamard(x), torch.cat([low + high, low - high]))


@given(st.integers(0, 9), st.data())
def test_a_short_vector_is_padded_and_only_the_wanted_entries_come_back(
    exponent: int, data: st.DataObject
) -> None:
    length = 1 << exponent
    n, keep = data.draw(st.integers(1, length)), data.draw(st.integers(1, length))
    x = integers(n)
    before = x.clone()
    assert torch.equal(walsh_hadamard(x, length, keep), whole(length)[:keep, :n] @ x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("n", "keep"), [(2048, 2048), (2048, 1300), (1300, 2048)])
def test_chunks_give_what_the_whole_gives(n: int, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(2048)[:keep, :n] @ integers(n)
    for chunk in (1, 64, 250):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        assert torch.equal(walsh_hadamard(integers(n), 2048, keep), expected)


def test_twice_is_a_multiple_of_the_identity_also_for_real_numbers_and_long_vectors() -> None:
    x = torch.randn(1 << 19, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)) / len(x), x, atol=1e-5, rtol=1e-5)


def test_gradients_of_first_and_second_order() -> None:
    x = torch.randn(13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: walsh_hadamard(v, 32, 21), x)
    assert torch.autograd.gradgradcheck(lambda v: walsh_hadamard(v, 32, 21), x)


def test_autocast_does_not_round() -> None:
    x = torch.randn(256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = walsh_hadamard(x)
    assert torch.equal(inside, walsh_hadamard(x))


def test_a_first_use_without_gradients_does_not_spoil_later_ones() -> None:
    module.sylvester.cache_clear()
    with torch.inference_mode():
        walsh_hadamard(torch.ones(16))
    assert not module.sylvester(16, torch.float32, torch.device("cpu")).is_inference()
    x = torch.ones(16, requires_grad=True)
    walsh_hadamard(x)[0].backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(16))


@pytest.mark.parametrize(
    ("shape", "length", "keep"),
    [((6,), None, None), ((4,), 2, None), ((4,), 4, 5), ((4,), 4, 0), ((2, 2), None, None), ((0,), 1, 1)],
)
def test_refuses_what_it_has_no_matrix_for(
    shape: tuple[int, ...], length: int | None, keep: int | None
) -> None:
    with pytest.raises(ValueError, match="power of two"):
        walsh_hadamard(torch.zeros(shape), length, keep)
