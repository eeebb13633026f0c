"""What is refused when a space is read, and what is not."""

from __future__ import annotations

import pytest
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.errors import RecipeError
from autopeft.search.space.space import Space

TINY = spec_of(tiny_config("bert"))


@pytest.mark.parametrize("text", ["gate: []", "chain: []", "route: {children: []}"])
def test_a_composition_that_is_written_without_children_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="holds at least one child"):
        Space.from_yaml(f"layers: [{{attach: [{{{text}}}, lora]}}]")


@pytest.mark.parametrize("options", ["ia3, {ia3: {sites: [k]}}", "{ia3: {sites: [k]}}, ia3"])
def test_a_method_with_and_without_options_are_two_choices_in_any_order(options: str) -> None:
    bound = Space.from_yaml(f"layers: [{{attach: [{{choice: [{options}]}}]}}]").bind(TINY)
    assert len(bound.parameters[0].choices) == 2
    with pytest.raises(RecipeError, match="offered twice"):
        Space.from_yaml(f"layers: [{{attach: [{{choice: [{options}, ia3]}}]}}]")


def test_a_text_that_no_recipe_could_hold_is_refused_with_its_line() -> None:
    for key in ("name", "reference"):
        with pytest.raises(RecipeError, match=rf"space:1: {key}.*at most 200 characters"):
            Space.from_yaml(f"{key}: {'a' * 201}\nlayers: [{{attach: [lora]}}]")


def test_a_scale_beyond_all_numbers_is_no_rate() -> None:
    with pytest.raises(RecipeError, match="should be less than or equal to 10"):
        Space.from_yaml("""
vars: {rank: {choice: [1, 2]}}
layers: [{attach: [{lora: {rank: $rank}}]}]
training: {learning_rate: {scaled: 1.0e-3, with: $rank, at: 12, power: 400}}
""")
