from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autopeft.method import Context, Reserved, Slot
from autopeft.method.reserved import reserve

SLOTS = st.lists(
    st.builds(Slot, st.integers(1, 3), st.integers(0, 7), st.sampled_from(("front", "end"))),
    min_size=1,
    max_size=4,
)


def _mask(lengths: list[int], *, left: bool) -> Tensor:
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[len(row) - length :] = 1 if left else row[len(row) - length :]
        row[:length] = row[:length] if left else 1
    return mask


def _by_hand(slots: list[Slot], mask: Tensor) -> list[list[int]]:
    """Each text as numbers: tokens by their column, rows from 100 on in the order of their slots."""
    found = []
    for row in mask.tolist():
        real = [column for column, one in enumerate(row) if one]
        behind: dict[int, list[int]] = {}
        number = 100
        for slot in slots:
            before = min(slot.offset, len(real))
            before = before if slot.anchor == "front" else len(real) - before
            column = real[before - 1] if before else -1
            behind.setdefault(column, []).extend(range(number, number + slot.length))
            number += slot.length
        text = list(behind.get(-1, []))
        for column in range(len(row)):
            text += [column, *behind.get(column, [])]
        found.append(text)
    return found


@given(SLOTS, st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans())
def test_rows_lie_where_their_slots_say(slots: list[Slot], lengths: list[int], left: bool) -> None:
    mask = _mask(lengths, left=left)
    reserved = reserve(slots, mask, mask.shape[1])
    count = sum(slot.length for slot in slots)
    text = torch.arange(mask.shape[1]).expand(len(mask), -1)
    rows = torch.arange(100, 100 + count).expand(len(mask), -1)
    longer = reserved.around(text, rows)
    assert longer.tolist() == _by_hand(slots, mask)
    assert torch.equal(reserved.text(longer), text)
    assert torch.equal(reserved.filled(torch.where(longer < 100, longer, 0), rows), longer)
    alone = torch.where(longer < 100, longer, 0)[..., None].expand(-1, -1, 2)
    placed = reserved.placed(text[:1, :, None].expand(-1, -1, 2), torch.zeros(*longer.shape, 2))
    assert torch.equal(placed, alone.float() if placed.is_floating_point() else alone)
    wide = longer[..., None].expand(-1, -1, 2)
    assert torch.equal(reserved.text(wide), text[..., None].expand(-1, -1, 2))


def test_rows_in_front_need_no_index_and_lie_before_padding() -> None:
    reserved = reserve([Slot(2), Slot(1)], _mask([1, 3], left=True), 3)
    assert reserved == Reserved(3, 3)
    assert reserved.around(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [[1, 1, 1, 0, 0, 0]] * 2


def test_ordinals_count_real_tokens_and_rows() -> None:
    reserved = reserve([Slot(1), Slot(2, offset=1)], _mask([2, 4], left=True), 4)
    assert reserved.ordinals is not None
    assert reserved.ordinals.tolist() == [[0, 2, 3], [0, 2, 3]]


def test_what_belongs_to_one_entry_is_spread_over_its_rows_alone() -> None:
    owners = (("a", 1), ("b", 2))
    reserved = Reserved(3, 2, owners=owners)
    like = torch.zeros(2, 5, 1)
    assert reserved.spread(torch.ones(1, 2, 1), like, "b")[..., 0].tolist() == [[0, 1, 1, 0, 0]] * 2
    images = Reserved(3, right=True, owners=owners)
    assert images.spread(torch.ones(1, 1, 1), like, "a")[..., 0].tolist() == [[0, 0, 1, 0, 0]] * 2


@given(SLOTS, st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_what_belongs_to_one_entry_is_found_and_put_anew(
    slots: list[Slot], lengths: list[int], left: bool, right: bool
) -> None:
    mask = _mask(lengths, left=left)
    owners = tuple((str(i), slot.length) for i, slot in enumerate(slots))
    count = sum(slot.length for slot in slots)
    found = Reserved(count, right=True) if right else reserve(slots, mask, mask.shape[1])
    reserved = replace(found, owners=owners)
    text = torch.arange(mask.shape[1]).expand(len(mask), -1)
    rows = torch.arange(100, 100 + count).expand(len(mask), -1)
    states = reserved.around(text, rows)
    for owner, part in zip((name for name, _ in owners), rows.split([n for _, n in owners], 1), strict=True):
        assert torch.equal(reserved.own(states, owner), part)
        other = reserved.renewed(states, part + 1000, owner)
        assert torch.equal(reserved.own(other, owner), part + 1000)
        assert torch.equal(reserved.renewed(other, part, owner), states)
        assert int((other != states).sum()) == part.numel()


def test_rows_that_layers_put_in_are_told_from_those_of_the_embeddings() -> None:
    reserved = Reserved(3, 2, owners=(("a", 3),))
    assert reserved.late == 0
    longer = reserved.led_by((("b", 2),), 2)
    assert (longer.count, longer.late) == (5, 2)
    assert longer.led_by((("c", 1),), 2).late == 3


def test_rows_that_are_made_anew_add_none() -> None:
    assert (Slot(3).adds, Slot(3, renews=True).adds, Slot(3, leaves=True).adds) == (3, 0, 0)


@pytest.mark.parametrize("right", [False, True])
def test_rows_that_leave_are_told_from_text_in_every_layer(right: bool) -> None:
    """Also where the rows that are known are no longer, or not yet, those of the states."""
    reserved = Reserved(1, None if right else 2, right=right)
    inside = reserved.led_by((("b", 2),), 2).led_by((("c", 1),), 2)
    behind = inside.left()
    assert (inside.count, inside.late, behind.count, behind.late) == (4, 3, 3, 2)
    for states, known in itertools.product(range(3, 7), (inside, behind, behind.left())):
        text = [100, 101] + [0] * (states - 2) if right else [0] * (states - 2) + [100, 101]
        assert known.text(torch.tensor(text)[None, :, None])[0, :, 0].tolist() == [100, 101]


@pytest.mark.parametrize("right", [False, True])
def test_text_is_all_but_the_reserved_rows(right: bool) -> None:
    states = torch.arange(5.0)[None, :, None]
    reserved = Reserved(2, None if right else 3, right=right)
    assert reserved.text(states)[0, :, 0].tolist() == ([0, 1, 2] if right else [2, 3, 4])


def test_text_is_placed_beside_the_reserved_rows() -> None:
    text = torch.ones(1, 2, 1)
    front, images = Reserved(1, 2), Reserved(1, right=True)
    assert front.placed(text, torch.zeros(2, 3, 1))[..., 0].tolist() == [[0, 1, 1]] * 2
    assert images.placed(text, torch.zeros(1, 3, 1))[..., 0].tolist() == [[1, 1, 0]]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans(), st.integers(0, 4))
def test_tokens_are_numbered_wherever_padding_is(lengths: list[int], left: bool, past: int) -> None:
    mask = _mask(lengths, left=left)
    tokens = mask.shape[1]
    past = min(past, tokens - 1)
    numbers = Context(text_mask=mask, past=past).numbers(tokens - past)
    for row, real in zip(numbers.tolist(), mask.tolist(), strict=True):
        expected = [max(0, sum(real[: i + 1]) - 1) for i in range(tokens)]
        assert row == expected[past:]
    assert Context(past=past).numbers(3).tolist() == [[past, past + 1, past + 2]]
