"""Spaces, backbones and recipes for the tests of projection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from transformers import BertConfig, LlamaConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.search.space.projection import values_of
from autopeft.search.space.space import BoundSpace, Space
from autopeft.spec import BackboneSpec

from .tiny import tiny_config

__all__ = [
    "BERT",
    "EACH",
    "HEAD",
    "LLAMA",
    "LORAS",
    "MINILM",
    "SHARED",
    "SIX",
    "SMALL",
    "SPECS",
    "SPLIT",
    "T5",
    "TINY",
    "TWO",
    "assert_inverse",
    "bound_to",
    "missing",
    "points",
    "recipe",
    "space",
    "trial_hash",
]

SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
TINY = spec_of(tiny_config("bert"))
TWO = spec_of(BertConfig(**SMALL, num_hidden_layers=2))
SIX = spec_of(BertConfig(**SMALL, num_hidden_layers=6))
MINILM = spec_of(
    BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
)
BERT = spec_of(BertConfig())
LLAMA = spec_of(LlamaConfig(**SMALL, num_hidden_layers=3, num_key_value_heads=2))
T5 = spec_of(
    T5Config(vocab_size=50, d_model=32, num_layers=4, num_decoder_layers=2, d_ff=64, d_kv=8, num_heads=4)
)
SPECS = {"tiny": TINY, "minilm": MINILM, "llama": LLAMA, "t5": T5}
EACH = """
name: each
layers:
  - each_layer:
      - {lora: {rank: {choice: [0, 1, 2, 4]}, sites: {choice: [[q], [q, v], [up, down]]}}}
      - choice: [{gate: [{lora: {rank: {choice: [1, 2]}}}, {parallel_adapter: {bottleneck: 4}}]}, ia3, null]
  - at: {from: {int: [0, last]}}
    attach:
      - optional: {prefix_tuning: {length: {int: [1, 400], log: true}}}
training:
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  groups: {lora: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}}}
  policies: [{lora_plus: {ratio: {int: [2, 32]}}}]
"""
SHARED = """
name: shared
vars: {size: {choice: [0, 1, 2]}}
layers:
  - at: {from: {int: [0, last]}, switch: {choice: [true, false]}}
    each_layer:
      - optional: {lora: {rank: $size, sites: {choice: [[q], [q, v]]}}, as: low}
      - choice: [{sum: [ia3, {serial_adapter: {bottleneck: $size, variant: pfeiffer}}]}, null]
  - at: all
    attach:
      - gate: [{lora: {rank: {int: [1, 6]}}}, {optional: {prefix_tuning: {length: $size}}}]
model: [{optional: bitfit}, {prompt_tuning: {length: $size}}]
training:
  groups: {low: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}, weight_decay: 0.1}}
"""
SPLIT = """
name: split
layers:
  - attach:
      - {lora: {sites: {choice: [[q], [q, v]]}}}
      - optional: {lora: {sites: [v]}}
"""
LORAS = """
name: loras
layers:
  - at: all
    attach:
      - {lora: {rank: {choice: [2, 8]}, sites: [q, v]}}
      - {lora: {rank: {choice: [4, 16]}, sites: [q, v]}, as: big}
training:
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  groups: {big: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}}}
"""


def bound_to(name: str, spec: BackboneSpec = BERT) -> BoundSpace:
    return Space.named(name).bind(spec)


def space(text: str, spec: BackboneSpec = TINY) -> BoundSpace:
    return Space.from_yaml(text).bind(spec)


def recipe(*items: Any, at: Any = "all", model: Iterable[Any] = (), **training: Any) -> Recipe:
    layers = [{"at": at, "attach": list(items)}] if items else []
    return Recipe.from_dict({"name": "r", "layers": layers, "model": list(model), "training": training})


def trial_hash(found: Recipe, spec: BackboneSpec) -> str:
    return build_graph(found, spec).trial_hash()


def points(bound: BoundSpace) -> st.SearchStrategy[dict[str, Any]]:
    kinds = {}
    for p in bound.parameters:
        if p.kind == "categorical":
            kinds[p.name] = st.sampled_from(p.choices)
        elif p.kind == "int":
            kinds[p.name] = st.integers(int(p.low), int(p.high))
        else:
            kinds[p.name] = st.floats(p.low, p.high)
    return st.fixed_dictionaries(kinds)


def assert_inverse(bound: BoundSpace, values: dict[str, Any]) -> None:
    try:
        wanted = bound.materialize(values)
    except EmptyRecipe:
        assume(False)
    match = values_of(wanted, bound)
    assert trial_hash(bound.materialize(match.values), bound.spec) == trial_hash(wanted, bound.spec)
    assert (match.exact, match.missing, match.distance, match.overlap) == (True, [], 0.0, 1.0)


def missing(wanted: Recipe, name: str = "lora", spec: BackboneSpec = SIX) -> tuple[list[str], Recipe]:
    """What a space cannot say of a recipe, and the nearest member."""
    bound = bound_to(name, spec)
    match = values_of(wanted, bound)
    assert not match.exact
    return match.missing, bound.materialize(match.values)


HEAD: dict[str, Any] = {"groups": {"head": {"learning_rate": 1e-2}}}
