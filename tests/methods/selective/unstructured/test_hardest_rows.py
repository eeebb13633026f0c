"""The rows of largest loss, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from autopeft.methods.selective.unstructured.fish_dip import hardest_rows
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import AutoPEFTError


@given(
    losses=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    size=st.integers(1, 7),
    share=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    least=st.integers(1, 6),
    more=st.integers(0, 8),
)
def test_they_are_a_stable_sort_of_all(
    losses: list[int], size: int, share: float, least: int, more: int
) -> None:
    rows = {"loss": torch.tensor(losses, dtype=torch.float32), "number": torch.arange(len(losses))}
    batches = [{k: v[i : i + size] for k, v in rows.items()} for i in range(0, len(losses), size)]
    found = hardest_rows(iter(batches), lambda b: b["loss"], share=share, least=least, most=least + more)
    wanted = min(max(int(share * len(batches)), least), least + more, max(len(losses) - 1, 1))
    order = rows["loss"].argsort(descending=True, stable=True)[:wanted]
    assert [row["number"].tolist() for row in found] == [[i] for i in order.tolist()]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(loss: float) -> None:
    batches = [{"loss": torch.tensor([1.0, 2.0])}, {"loss": torch.tensor([3.0, loss])}]
    with pytest.raises(AutoPEFTError, match="loss of a row is not finite"):
        hardest_rows(batches, lambda b: b["loss"], share=0.0, least=1, most=2)


def test_a_row_does_not_keep_its_batch() -> None:
    batch = {"loss": torch.arange(1000.0)}
    (row,) = hardest_rows([batch], lambda b: b["loss"], share=0.0, least=1, most=1)
    assert row["loss"].untyped_storage().nbytes() == 4
