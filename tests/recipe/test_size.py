"""What a recipe or space expands to is counted without expanding it, and too much is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy import toy_spec

from autopeft.errors import RecipeError
from autopeft.recipe import Recipe
from autopeft.recipe.size import MOST_VALUES, written_out
from autopeft.search.space.space import Space


def values_in(tree: Any) -> int:
    """Keys, elements and containers of a tree, one by one."""
    if isinstance(tree, dict):
        return 1 + sum(1 + values_in(value) for value in tree.values())
    return 1 + sum(map(values_in, tree)) if isinstance(tree, list) else 1


def nested(depth: int, copies: int = 64) -> Any:
    item: Any = "lora"
    for _ in range(depth):
        item = {"route": {"children": [item], "copies": copies}}
    return {"layers": [{"attach": [item]}]}


items = st.recursive(
    st.sampled_from(["lora", {"lora": {"rank": 2}}, {"lora": {"sites": ["q", "v"]}, "as": "x"}]),
    lambda inner: st.builds(
        lambda kind, children: {kind: children}, st.sampled_from(["gate", "sum"]), st.lists(inner)
    ),
    max_leaves=20,
)


@given(st.lists(items))
def test_without_copies_it_is_what_stands_there(attach: list[Any]) -> None:
    tree = {"name": "x", "layers": [{"at": [0, 1], "attach": attach}]}
    assert written_out(tree) == values_in(tree)


@given(st.integers(1, 4), st.integers(1, 5))
def test_copies_are_counted_as_if_they_were_written_out(depth: int, copies: int) -> None:
    short = nested(depth, copies)
    assert sum(1 for _ in Recipe.from_dict(short).entries()) == copies**depth
    whole = Recipe.from_dict(short).to_dict()["layers"]
    # Children in a list of their own, beside the option that says how often.
    assert values_in(whole) <= written_out(short["layers"]) <= 5 * values_in(whole)


def test_a_short_file_of_millions_of_entries_is_refused() -> None:
    for depth, said in ((4, r"has 18,\d{3},\d{3} values"), (5, r"has 1,\d{3},\d{3},\d{3} values")):
        with pytest.raises(RecipeError, match=said) as caught:
            Recipe.from_yaml(json.dumps(nested(depth)), "bomb.yaml")
        assert "take fewer entries, copies or uses of a variable" in str(caught.value)
        assert len(str(caught.value)) < 300
    assert len(Recipe.from_dict(nested(2)).entries()) == 4096


def test_what_is_read_can_be_written_and_read_again() -> None:
    recipe = Recipe.from_dict(nested(2, 50))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_trees_from_python_that_hold_one_list_often_or_in_itself() -> None:
    item: Any = "lora"
    for _ in range(5):
        item = {"sum": [item] * 20}
    with pytest.raises(RecipeError, match="values, and at most 10,000"):
        Recipe.from_dict({"layers": [{"attach": [item]}]})
    ring: list[Any] = []
    ring.append({"sum": ring})
    with pytest.raises(RecipeError, match="nested more than 20 levels"):
        Recipe.from_dict({"layers": ring})
    deep: Any = "lora"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RecipeError, match="nested more than 20 levels"):
        Recipe.from_dict({"layers": deep})
    with pytest.raises(RecipeError, match="a number of more than 300 digits"):
        Recipe.from_dict({"layers": [{"at": [10**5000], "attach": ["lora"]}]})
    # Deep where it is first met, and deeper where it is met again.
    tail: Any = "lora"
    for _ in range(12):
        tail = [tail]
    again: Any = tail
    for _ in range(12):
        again = [again]
    with pytest.raises(RecipeError, match="nested more than 20 levels"):
        Recipe.from_dict({"layers": [tail, again]})


def doubling(variables: int) -> str:
    """Variables of which each uses the last one twice."""
    lines = ["vars:", "  v0: {choice: [lora, ia3]}"]
    lines += [f"  v{i}: {{choice: [{{sum: [$v{i - 1}, $v{i - 1}]}}, null]}}" for i in range(1, variables)]
    return "\n".join([*lines, f"layers: [{{attach: [$v{variables - 1}]}}]"])


def test_a_space_whose_variables_double_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"space:1: with copies and variables written out this has 1,207,959,385"
    ):
        Space.from_yaml(doubling(26))
    with pytest.raises(RecipeError, match="has more than a million millions of values"):
        Space.from_yaml(doubling(60))
    space = Space.from_yaml(doubling(5)).bind(toy_spec())
    whole = {p.name: p.choices[0] for p in space.parameters}
    assert len(space.materialize(whole).entries()) == 16


def test_copies_of_a_space_count_by_their_largest_choice() -> None:
    text = "layers: [{attach: [{route: {children: [{route: {children: [lora], copies: 64}}], copies: %s}}]}]"
    for copies in ("{choice: [1, 64]}", "{int: [1, 64]}", "$many"):
        body = text % copies
        with pytest.raises(RecipeError, match="values, and at most"):
            Space.from_yaml(
                f"vars: {{many: {{choice: [2, 64]}}}}\n{body}".replace("[lora]", "[{lora: {rank: 2}}]")
            )


def test_a_space_is_counted_again_on_its_backbone() -> None:
    text = f"layers: [{{each_layer: [{', '.join(['{lora: {rank: {choice: [1, 2]}}}'] * 90)}]}}]"
    space = Space.from_yaml(text)
    assert len(space.bind(toy_spec(layers=2)).parameters) == 180
    with pytest.raises(RecipeError, match=r"recipes of up to 13,500 values on a backbone of 30 layers"):
        space.bind(toy_spec(layers=30))
    one_of = ", ".join([f"{{lora: {{rank: {{choice: [{i}, 99]}}}}}}" for i in range(1, 61)])
    wide = Space.from_yaml(f"layers: [{{each_layer: [{{choice: [{one_of}]}}]}}]")
    assert len(wide.bind(toy_spec(layers=2)).parameters) == 122
    with pytest.raises(RecipeError, match=r"12,200 parameters on a backbone of 200 layers"):
        wide.bind(toy_spec(layers=200))


def test_a_file_of_too_many_values_is_read_no_further() -> None:
    with pytest.raises(RecipeError, match=r"x\.yaml:1: more than 10,000 values"):
        Recipe.from_yaml("layers: [{attach: [" + "lora, " * 12_000 + "]}]", "x.yaml")
    assert MOST_VALUES == 10_000


def test_a_misspelt_file_gets_one_screen() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml("layers:\n- attach:\n" + "  - lorra\n" * 3000, "x.yaml")
    lines = str(caught.value).split("\n")
    assert len(lines) == 21
    assert lines[0].startswith(
        "x.yaml:3: layers[0].attach[0].lorra: there is no method 'lorra'. Did you mean 'lora'"
    )
    assert lines[-1] == "… and there may be more; mend these first."
    with pytest.raises(RecipeError) as caught:
        Space.from_yaml("layers:\n- attach:\n" + "  - lorra\n" * 3000, "x.yaml")
    assert str(caught.value).count("\n") == 20


def test_long_problems_are_fewer() -> None:
    items = "".join(f"      - {{no_such_method_{i}_{'x' * 300}: {{}}}}\n" for i in range(15))
    with pytest.raises(RecipeError) as error:
        Recipe.from_yaml(f"autopeft: 2\nname: long\nlayers:\n  - attach:\n{items}")
    lines = str(error.value).splitlines()
    assert 1 < len(lines) < 15
    assert len(str(error.value)) <= 4200
    assert lines[-1] == "… and there may be more; mend these first."
