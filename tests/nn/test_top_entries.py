"""The k largest scores over several tensors, the first ones of equal scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.nn import TopEntries, top_entries


@given(
    k=st.integers(0, 40),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    levels=st.integers(1, 50),
    seed=st.integers(0, 100),
)
def test_it_is_a_stable_sort_of_all(k: int, sizes: list[int], levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = [torch.tensor(rng.integers(0, levels, n), dtype=torch.float32) for n in sizes]
    flat = torch.cat(tensors).numpy()
    expected = np.argsort(-flat, kind="stable")[:k]
    assert top_entries(tensors, k).tolist() == expected.tolist()


def test_shapes_and_precision_do_not_matter() -> None:
    scores = torch.rand(3, 4, 5)
    assert torch.equal(top_entries([scores], 7), top_entries([scores.flatten()], 7))
    assert top_entries([scores.bfloat16()], 7).dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    best = TopEntries(2)
    best.show(torch.ones(3))
    with pytest.raises(ValueError, match="finite"):
        best.show(torch.tensor([1.0, bad]))
