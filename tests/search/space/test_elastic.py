"""A space as one super-hybrid, and what of it fits a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.projecting import MINILM, T5, TINY, bound_to, space

from autopeft.counting import count
from autopeft.errors import UsageError
from autopeft.search.space.elastic import grouped, largest_within, super_hybrid

SHARED = """
name: shared
vars: {rank: {choice: [0, 2, 4]}}
layers:
  - at: all
    attach: [{lora: {rank: $rank}}, {serial_adapter: {bottleneck: $rank, variant: pfeiffer}}]
"""


@pytest.mark.parametrize("spec", [TINY, MINILM, T5], ids=["tiny", "minilm", "t5"])
@pytest.mark.parametrize("budgets", [1, 4])
def test_it_is_as_large_as_is_wanted_and_counts_what_it_is(spec: object, budgets: int) -> None:
    bound = bound_to("gates", spec)  # type: ignore[arg-type]
    least = super_hybrid(bound, 1)
    assert all(len(unit.sizes) == 2 for unit in least.units), "each unit at its smallest"
    hybrid = super_hybrid(bound, most := budgets * 2 * least.deployed)
    assert hybrid.deployed <= most
    assert hybrid.deployed > most * 0.8
    assert hybrid.deployed == count(bound.materialize(hybrid.values), bound.spec).deployed
    assert hybrid.fixed == 0
    top = [len(unit.sizes) - 1 for unit in hybrid.units]
    assert hybrid.at(top) == hybrid.values
    for i in range(0, len(top), 5):
        levels = [*top[:i], 0, *top[i + 1 :]]
        left = count(bound.materialize(hybrid.at(levels)), bound.spec).deployed
        assert left == hybrid.deployed - hybrid.units[i].whole


def test_what_cannot_be_left_out_counts_too() -> None:
    body = "[{serial_adapter: {bottleneck: 4}}, {lora: {rank: {choice: [0, 2, 4]}}}]"
    bound = space(f"name: fixed\nlayers: [{{each_layer: {body}}}]\n", MINILM)
    hybrid = super_hybrid(bound, 400_000)
    for level in (0, 1, 2):
        levels = [level] * len(hybrid.units)
        expected = count(bound.materialize(hybrid.at(levels)), bound.spec).deployed
        assert hybrid.size(levels) == expected
    assert hybrid.fixed == hybrid.size([0] * len(hybrid.units)) > 0


@given(st.data())
def test_what_is_chosen_fits_and_leaves_no_room_for_more(data: st.DataObject) -> None:
    bound = bound_to("gates", MINILM)
    hybrid = super_hybrid(bound, 400_000)
    groups = grouped(bound, hybrid, parts=data.draw(st.sampled_from([1, 3, None])))
    assert sorted(i for group in groups for i in group.members) == list(range(len(hybrid.units)))
    order = data.draw(st.permutations(range(len(groups))))
    budget = data.draw(st.integers(0, 300_000))
    levels = largest_within(hybrid.units, groups, order, budget)
    sizes = [unit.sizes[level][1] for unit, level in zip(hybrid.units, levels, strict=True)]
    assert sum(sizes) <= budget
    for unit, level in zip(hybrid.units, levels, strict=True):
        if level + 1 < len(unit.sizes):
            assert sum(sizes) + unit.sizes[level + 1][1] - unit.sizes[level][1] > budget
    # What comes first has all that it can have.
    first = groups[order[0]].members
    if sum(hybrid.units[i].whole for i in first) <= budget:
        assert all(levels[i] == len(hybrid.units[i].sizes) - 1 for i in first)
    for members in (group.members for group in groups):
        alike = [levels[i] for i in members if hybrid.units[i].sizes == hybrid.units[members[0]].sizes]
        assert max(alike) - min(alike) <= 1, "units of a group grow in turn"


def test_groups_say_what_and_where_they_are() -> None:
    bound = bound_to("gates", MINILM)
    hybrid = super_hybrid(bound, 400_000)
    thirds = grouped(bound, hybrid, parts=3)
    names = [(group.what, group.where) for group in thirds]
    assert names[:5] == [
        *((what, "0–1") for what in ("attention", "ffn", "adapter", "ia3")),
        ("attention", "2–3"),
    ]
    assert {len(group.members) for group in thirds} == {2}
    each = grouped(bound, hybrid, parts=None)
    assert len(each) == len(hybrid.units)
    assert ("attention", "5") in [(group.what, group.where) for group in each]


def test_sizes_that_cannot_be_chosen_apart_are_refused() -> None:
    with pytest.raises(UsageError, match="each_layer"):
        super_hybrid(space(SHARED), 1000)
    with pytest.raises(UsageError, match="each_layer"):
        super_hybrid(space("name: n\nlayers: [{attach: [{lora: {rank: {choice: [1, 2]}}}]}]"), 1000)
