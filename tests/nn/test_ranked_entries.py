"""Entries chosen by scores, of all tensors together or of each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import AutoPEFTError
from autopeft.nn import RankedEntries, ranked, reach_of
from autopeft.spec import TensorSpec

SIZES = (12, 5, 40)
TENSORS = [TensorSpec(f"t{i}", (size,), "weight", "encoder", i) for i, size in enumerate(SIZES)]


def scores() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randint(0, 9, (size,)).float() for size in SIZES]


def brute_force(tensors: list[torch.Tensor], sizes: list[int] | None, k: int) -> list[int]:
    if sizes is None:
        return sorted(torch.cat(tensors).argsort(descending=True, stable=True)[:k].tolist())
    start, found = 0, []
    for tensor, size in zip(tensors, sizes, strict=True):
        found += [start + i for i in tensor.argsort(descending=True, stable=True)[:size].tolist()]
        start += len(tensor)
    return sorted(found)


@pytest.mark.parametrize("sizes", [None, [3, 0, 9], [12, 5, 40], [0, 1, 0]])
def test_the_best_are_chosen_and_values_return_to_zero(sizes: list[int] | None) -> None:
    k = 12 if sizes is None else sum(sizes)
    module = RankedEntries(TENSORS, k, "x", sizes)
    torch.nn.init.ones_(module.entries.values)
    measured = module.ranking(scores())
    assert measured["ranking"].dtype == torch.int32
    for _ in range(2):  # from any earlier state
        module.settle(measured)
    assert module.entries.index.tolist() == brute_force(scores(), sizes, k)
    assert not module.entries.values.any()


@given(k=st.integers(0, 100), more=st.integers(0, 100), least=st.integers(0, 20))
def test_more_are_ranked_than_kept(k: int, more: int, least: int) -> None:
    reach = reach_of(k, k + more, least)
    assert k <= reach <= k + more
    assert reach == k + more or reach >= least


def test_shares_of_each_tensor_are_ranked_alike() -> None:
    """Up to one entry in 32, so that masks of small shares need one measurement."""
    wide = [TensorSpec("a", (6400,), "weight"), TensorSpec("b", (320,), "weight")]
    few, many = RankedEntries(wide, 11, "x", [10, 1]), RankedEntries(wide, 210, "x", [200, 10])
    assert few.reach == many.reach == [256, 16]


def test_what_is_not_finite_is_the_methods_affair() -> None:
    with pytest.raises(AutoPEFTError, match=r"^mine got gradients that are not finite"):
        ranked([torch.tensor([1.0, float("nan")])], 1, "mine")
