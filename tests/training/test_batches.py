from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.training import encoded_split

from autopeft.training.batches import held_out_rows, share_of_rows
from autopeft.training.errors import PhaseError
from autopeft.training.phases import Phase
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=1, device="cpu")


@given(
    rows=st.integers(2, 60),
    share=st.floats(0.1, 1),
    held_out=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_both_parts_are_disjoint_and_cover_the_share(
    rows: int, share: float, held_out: float, seed: int
) -> None:
    split = encoded_split(rows, seed=0)
    plan = replace(PLAN, train_share=share, seed=seed)
    chosen = share_of_rows(split, plan)
    whole = set(range(rows)) if chosen is None else set(chosen.tolist())
    phase = Phase("p", held_out=held_out)
    if len(whole) < 2:
        with pytest.raises(PhaseError, match="'p' holds rows out and needs at least 2, but has 1"):
            held_out_rows(split, plan, phase)
        return
    trained, held = held_out_rows(split, plan, phase)
    assert trained is not None
    assert held is not None
    assert set(trained) | set(held) == whole
    assert len(trained) + len(held) == len(whole)
    assert len(trained) >= 1
    assert len(held) == pytest.approx(held_out * len(whole), abs=1)


def test_the_seed_draws_them() -> None:
    split, phase = encoded_split(40, seed=0), Phase("p", held_out=0.3)
    held = [held_out_rows(split, replace(PLAN, seed=seed), phase)[1] for seed in (1, 1, 2)]
    assert np.array_equal(held[0], held[1])  # type: ignore[arg-type]
    assert set(held[0].tolist()) != set(held[2].tolist())  # type: ignore[union-attr]


def test_without_it_all_rows_train() -> None:
    assert held_out_rows(encoded_split(5, seed=0), PLAN, Phase("p")) == (None, None)
    assert share_of_rows(encoded_split(5, seed=0), PLAN) is None
