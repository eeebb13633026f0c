from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autopeft.errors import DataError
from autopeft.nn import SparseDelta
from autopeft.spec import TensorSpec

TENSORS = (
    TensorSpec("a", (3, 4), "weight"),
    TensorSpec("b", (5,), "bias"),
    TensorSpec("c", (2, 2), "weight"),
)
TOTAL = 21


def _selected(positions: list[int]) -> SparseDelta:
    delta = SparseDelta(TENSORS, len(positions))
    delta.select(torch.tensor(positions, dtype=torch.int64))
    return delta


def _originals() -> dict[str, Tensor]:
    return {t.name: torch.randn(t.shape) for t in TENSORS}


@given(st.sets(st.integers(0, TOTAL - 1), max_size=TOTAL))
def test_adds_values_at_the_selected_places_and_nowhere_else(positions: set[int]) -> None:
    delta = _selected(sorted(positions, reverse=True))
    with torch.no_grad():
        delta.values.copy_(torch.arange(1.0, len(positions) + 1))
    originals = _originals()
    changed = torch.cat([delta.apply_to(n, w).flatten() for n, w in originals.items()])
    before = torch.cat([w.flatten() for w in originals.values()])
    expected = before.clone()
    for value, place in enumerate(sorted(positions), start=1):
        expected[place] += value
    assert torch.equal(changed, expected)


def test_names_only_tensors_that_it_touches_and_hands_back_the_others() -> None:
    delta = _selected([13, 20])
    assert delta.selected() == ["b", "c"]
    weight = torch.randn(3, 4)
    assert delta.apply_to("a", weight) is weight


def test_before_selection_nothing_is_selected() -> None:
    assert SparseDelta(TENSORS, 3).selected() == []


def test_gradient_reaches_the_values() -> None:
    delta = _selected([0, 7, 12])
    weight = torch.randn(3, 4)
    upstream = torch.randn(3, 4)
    (delta.apply_to("a", weight) * upstream).sum().backward()
    assert delta.values.grad is not None
    assert torch.equal(delta.values.grad, torch.stack([upstream[0, 0], upstream[1, 3], torch.tensor(0.0)]))


@pytest.mark.parametrize("positions", [[0, 0, 1], [-1, 2, 3], [1, 2, TOTAL], [1, 2]])
def test_refuses_a_bad_selection(positions: list[int]) -> None:
    with pytest.raises(ValueError):
        SparseDelta(TENSORS, 3).select(torch.tensor(positions))


def test_a_selection_that_is_loaded_or_copied_into_place_counts() -> None:
    source = _selected([0, 14])
    torch.nn.init.ones_(source.values)
    loaded, filled = SparseDelta(TENSORS, 2), SparseDelta(TENSORS, 2)
    assert loaded.selected() == filled.selected() == []
    loaded.load_state_dict(source.state_dict())
    for key, target in filled.state_dict().items():
        target.copy_(source.state_dict()[key])
    copied = copy.deepcopy(filled)
    filled.select(torch.tensor([1, 2]))
    assert loaded.selected() == copied.selected() == ["a", "b"]
    assert filled.selected() == ["a"]
    assert copied.apply_to("b", torch.zeros(5)).tolist() == [0, 0, 1, 0, 0]


@given(st.sets(st.integers(0, TOTAL - 1), max_size=9), st.sets(st.integers(0, TOTAL - 1), max_size=9))
def test_it_is_extended_and_values_stay_where_they_belong(first: set[int], more: set[int]) -> None:
    delta = SparseDelta(TENSORS, 18)
    delta.extend(torch.tensor(sorted(first, reverse=True), dtype=torch.int64))
    torch.nn.init.normal_(delta.values)
    before = torch.cat([delta.apply_to(t.name, torch.zeros(t.shape)).flatten() for t in TENSORS])
    delta.extend(torch.tensor(sorted(more), dtype=torch.int64))
    after = torch.cat([delta.apply_to(t.name, torch.zeros(t.shape)).flatten() for t in TENSORS])
    assert torch.equal(before, after)
    assert delta.held.tolist() == sorted(first | more)
    delta.hold(len(first | more))
    kept = torch.cat([delta.apply_to(t.name, torch.zeros(t.shape)).flatten() for t in TENSORS])
    assert torch.equal(before, kept)
    assert delta.index.tolist() == sorted(first | more)


def test_free_places_get_no_gradient() -> None:
    delta = SparseDelta(TENSORS, 4)
    delta.extend(torch.tensor([13]))
    assert delta.selected() == ["b"]
    delta.apply_to("b", torch.zeros(5)).sum().backward()
    assert delta.values.grad is not None
    assert delta.values.grad.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("positions", [[0, 1, 2, 3], [-2], [TOTAL]])
def test_refuses_to_extend_beyond_its_places_or_the_tensors(positions: list[int]) -> None:
    delta = SparseDelta(TENSORS, 3)
    with pytest.raises(ValueError, match="extend"):
        delta.extend(torch.tensor(positions))


@pytest.mark.parametrize("index", [[-2, 0, 1], [0, -1, 1], [0, 0, 1], [2, 1, 3], [-1, 4, 4], [0, 1, TOTAL]])
def test_refuses_a_damaged_index(index: list[int]) -> None:
    delta = SparseDelta(TENSORS, 3)
    delta.index.copy_(torch.tensor(index))
    with pytest.raises(DataError, match="must rise"):
        delta.spans()


@given(st.lists(st.sets(st.integers(0, TOTAL - 1), max_size=7), min_size=1, max_size=4), st.integers(0, 5))
def test_what_is_added_keeps_the_values_that_were_there(parts: list[set[int]], spare: int) -> None:
    fresh = [part - set().union(*parts[:i]) for i, part in enumerate(parts)]
    delta = SparseDelta(TENSORS, sum(map(len, fresh)) + spare)
    known: dict[int, float] = {}
    for part in fresh:
        delta.extend(torch.tensor(list(part), dtype=torch.int64))
        with torch.no_grad():
            for slot, place in enumerate(delta.index.tolist()):
                if place in part:
                    assert float(delta.values[slot].detach()) == 0.0
                    delta.values[slot] = known[place] = place + 0.5
        chosen = delta.index[delta.index >= 0].tolist()
        assert chosen == sorted(known)
        assert {
            p: v for p, v in zip(delta.index.tolist(), delta.values.tolist(), strict=True) if p >= 0
        } == known
    assert delta.missing == spare
    changed = torch.cat([delta.apply_to(t.name, torch.zeros(t.shape)).flatten() for t in TENSORS])
    assert {i: float(v) for i, v in enumerate(changed.detach()) if v} == known
    values = delta.values.detach()[delta.index >= 0]
    delta.trim()
    assert delta.missing == 0
    assert torch.equal(delta.values, values)
    assert isinstance(delta.values, torch.nn.Parameter)
