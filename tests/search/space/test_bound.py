"""Where the blocks of a space lie on stacks of unequal depth, and what their parameters are called."""

from __future__ import annotations

import pytest
from transformers import T5Config

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import RecipeError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.space.counting import PointCounter
from autopeft.search.space.space import Space

UNEVEN = spec_of(T5Config(d_model=32, d_kv=8, num_layers=4, num_decoder_layers=2, num_heads=4, d_ff=64))


@pytest.mark.parametrize(
    "block",
    [
        "at: {of: last 2, switch: {choice: [true, false]}}\n    attach",
        "at: last 2\n    each_layer",
        "at: {of: last 2, from: 0}\n    attach",
    ],
)
def test_stacks_of_unequal_depth_have_layers_of_their_own(block: str) -> None:
    """What `at` leaves out of one stack is not attached to because the other one has it."""
    bound = Space.from_yaml(f"layers:\n  - {block}: [{{lora: {{rank: 2, sites: [q]}}}}]").bind(UNEVEN)
    recipe = bound.materialize({p.name: True for p in bound.parameters})
    plain = Recipe.from_yaml("layers: [{at: last 2, attach: [{lora: {rank: 2, sites: [q]}}]}]")
    found, wanted = (sorted(s.key for s in build_graph(r, UNEVEN).sites()) for r in (recipe, plain))
    assert found == wanted


def test_an_alias_in_blocks_of_two_stacks_names_both() -> None:
    bound = Space.from_yaml("""
layers:
  - at: {switch: {choice: [true, false]}}
    attach: [{lora: {rank: 2, sites: [q]}, as: mine}]
training: {groups: {mine: {learning_rate: 1.0e-2}}}
""").bind(UNEVEN)
    values = {p.name: p.name != "layer_0.on" for p in bound.parameters}
    recipe = bound.materialize(values)
    assert [(b.at, b.stack, b.attach[0].alias) for b in recipe.layers] == [
        ((1, 2, 3), "encoder", "mine_encoder"),
        ((1,), "decoder", "mine_decoder"),
    ]
    assert recipe.training is not None
    assert set(recipe.training.groups) == {"mine_encoder", "mine_decoder"}
    assert bound.kept(PointCounter).count(values) == count(recipe, UNEVEN)
    whole = bound.materialize(dict.fromkeys(values, True))
    assert [(b.at, b.stack, b.attach[0].alias) for b in whole.layers] == [("all", "all", "mine")]


def test_names_that_collide_with_those_of_layers_are_refused() -> None:
    text = """
layers:
  - at: {switch: {choice: [true, false]}}
    attach: [serial_adapter]
  - at: [1]
    attach: [{optional: {lora: {rank: 4}, as: layer_1}}]
"""
    with pytest.raises(RecipeError, match=r"Two parameters .* 'layer_1.on'.*another name"):
        Space.from_yaml(text).bind(UNEVEN)
