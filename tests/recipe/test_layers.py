from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import RecipeError
from autopeft.recipe import resolve_layers, spindle_sizes
from autopeft.recipe.layers import normalise_at


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("0-2", (0, 1, 2)),
        (" 1 - 1 ", (1,)),
        ([4, 0], (0, 4)),
        (3, (3,)),
        ("first 2", (0, 1)),
        ("last  4", (2, 3, 4, 5)),
        ("last 50%", (3, 4, 5)),
        ("first 33 %", (0, 1)),
        ("last 1%", (5,)),
        ("last 100%", (0, 1, 2, 3, 4, 5)),
        ("g1", (0,)),
        ("g2", (1, 2)),
        ("g4", (5,)),
    ],
)
def test_forms(at: object, expected: tuple[int, ...]) -> None:
    assert resolve_layers(normalise_at(at), 6) == expected


@pytest.mark.parametrize(
    "at",
    [
        "",
        "every",
        "g5",
        "g0",
        "5-2",
        "first 0",
        "last 0%",
        "last 101%",
        "50%",
        [],
        [0, 0],
        [-1],
        [True],
        True,
        1.0,
        None,
        {},
        "-3",
    ],
)
def test_malformed(at: object) -> None:
    with pytest.raises(RecipeError):
        normalise_at(at)


@pytest.mark.parametrize("at", [10_000, [0, 10**400], [-(10**5000)], 10**5000], ids=list("abcd"))
def test_layers_beyond_any_model(at: object) -> None:
    """Python writes no number of more than 4,300 digits out, in messages either."""
    with pytest.raises(RecipeError, match="beyond 9,999, and no model has so many"):
        normalise_at(at)


@pytest.mark.parametrize(("at", "n"), [("0-6", 6), ([6], 6), ("first 7", 6), ("last 7", 6), ("g1", 3)])
def test_layers_that_do_not_exist(at: object, n: int) -> None:
    with pytest.raises(RecipeError):
        resolve_layers(normalise_at(at), n)


@pytest.mark.parametrize(("n", "layers"), [(1, 1), (6, 3), (7, 4), (12, 6), (30, 15)])
def test_a_share_follows_the_depth(n: int, layers: int) -> None:
    assert resolve_layers(normalise_at("last 50%"), n) == tuple(range(n - layers, n))


def test_spindle_sizes_of_the_paper() -> None:
    assert spindle_sizes(12) == (2, 4, 4, 2)
    assert spindle_sizes(24) == (4, 8, 8, 4)
    assert spindle_sizes(6) == (1, 2, 2, 1)


@given(n=st.integers(4, 200))
def test_spindle_groups_partition_the_layers(n: int) -> None:
    groups = [resolve_layers(f"g{i}", n) for i in (1, 2, 3, 4)]
    assert [i for g in groups for i in g] == list(range(n))
    outer, second, third, last = map(len, groups)
    assert outer == last <= third <= second <= third + 1
