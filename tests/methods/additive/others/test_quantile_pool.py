from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from autopeft.methods.additive.others.ipa import QuantilePool
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import MethodError
from autopeft.method import Sample


def samples(*rewards: float) -> list[Sample]:
    return [Sample(i, (i,), str(i), reward) for i, reward in enumerate(rewards)]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=40), st.integers(1, 3))
def test_bins_are_of_equal_size_and_in_order(rewards: list[float], count: int) -> None:
    pool = QuantilePool(count)
    pool.add(samples(*rewards))
    bins = pool.bins()
    sizes = [bins.count(i) for i in range(count)]
    assert sizes[:-1] == [len(rewards) // count] * (count - 1)
    assert sizes[-1] == sizes[0] + len(rewards) % count
    assert bins == sorted(bins)
    found = [sample.reward for sample in pool.samples]
    assert found == sorted(rewards, reverse=True)


def test_later_samples_are_sorted_in() -> None:
    pool = QuantilePool(2)
    pool.add(samples(0.5, 0.1))
    pool.add(samples(0.3, 0.9))
    assert [s.reward for s in pool.samples] == [0.9, 0.5, 0.3, 0.1]
    assert pool.bins() == [0, 0, 1, 1]


def test_what_has_no_reward_is_dropped_and_too_few_are_refused() -> None:
    pool = QuantilePool(3)
    with pytest.raises(MethodError, match="2 samples with a reward do not fill 3 bins"):
        pool.add(samples(1.0, math.nan, 2.0, math.inf))


def test_batches_have_each_sample_once_in_an_epoch() -> None:
    torch.manual_seed(0)
    pool = QuantilePool(2)
    pool.add(samples(*range(7)))
    taken = list(islice(pool.batches(3), 4))
    for epoch in (taken[:2], taken[2:]):
        rows = [sample.row for batch, _ in epoch for sample in batch]
        assert len(set(rows)) == 6
    best = {sample.row for sample in pool.samples[:3]}
    for batch, bins in taken:
        assert [int(b) for b in bins] == [0 if sample.row in best else 1 for sample in batch]
    (whole,) = islice(pool.batches(100), 1)
    assert len(whole[0]) == 7
