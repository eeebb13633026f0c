"""What several processes cannot train is known from the graph."""

from __future__ import annotations

from typing import Any

from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.graph import build_graph, on_sharded, on_sharded_entries
from autopeft.method import get_method
from autopeft.recipe import Recipe

SPEC = spec_of(tiny_config("bert"))


def graph(*attached: Any, model: list[Any] | None = None) -> Any:
    made = {"name": "r", "layers": [{"attach": list(attached)}] if attached else [], "model": model or []}
    return build_graph(Recipe.from_dict(made), SPEC)


def test_what_acts_on_activations_or_alters_weights_as_they_are_can_be_trained() -> None:
    assert on_sharded(graph("lora", "dora", "serial_adapter", model=["bitfit"])) is None
    assert on_sharded_entries(graph("lora")) == 0


def test_the_reason_names_the_method() -> None:
    assert on_sharded(graph("lora", model=["fish_mask"])) == (
        "fish_mask is calibrated on the whole backbone before training"
    )
    assert on_sharded(graph(model=["lt_sft"])) == "lt_sft trains in phases of its own"


def test_a_term_of_the_batch_counts_where_it_is_asked_for() -> None:
    experts = {"children": ["lora"], "copies": 3, "top_k": 2}
    assert on_sharded(graph({"route": experts})) is None
    balanced = graph({"route": {**experts, "balance": 0.1}})
    why = "route has a term of the loss (balance) that is of all rows of a batch together"
    assert on_sharded(balanced) == why
    assert on_sharded_entries(balanced) == 1
    made = get_method("infoprompt")
    assert made(made.Config()).traits.batch_terms
    assert not made(made.Config(beta=0, gamma=0, kappa=0)).traits.batch_terms
