from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, GPT2Config, T5Config

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.recipe import Recipe
from autopeft.search.baselines import baselines, head_only, lora_baseline

BERT = spec_of(
    BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
)
SPECS = {
    "bert": BERT,
    "gpt2": spec_of(GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=500, n_positions=64)),
    "t5": spec_of(T5Config(d_model=64, num_layers=2, num_heads=4, d_kv=16, d_ff=128, vocab_size=500)),
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPECS)), st.integers(1, 60_000))
def test_lora_is_the_largest_that_fits(family: str, most: int) -> None:
    spec = SPECS[family]
    found = lora_baseline(spec, (0, most), rates=3)
    if found is None:
        assert most < 64 * 2 * 2 * len(spec.stacks), "something would have fitted"
        return
    for recipe in found.candidates:
        assert 0 < count(Recipe.from_dict(dict(recipe)), spec).deployed == found.counts["deployed"] <= most
    layers = found.candidates[0]["layers"][0]
    config = layers["attach"][0]["lora"]
    if layers.get("at", "all") == "all" and config["rank"] < 64:
        more = {"layers": [{"attach": [{"lora": {**config, "rank": config["rank"] + 1}}]}]}
        assert count(Recipe.from_dict(more), spec).deployed > most


def test_known_size() -> None:
    minilm = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    found = lora_baseline(spec_of(minilm), (0, 113_566), rates=3)
    assert found is not None
    assert found.counts["deployed"] == 110_592
    assert found.name == "LoRA rank 12 on q, v of all layers"


@pytest.mark.parametrize("rates", [1, 2, 3, 5])
def test_learning_rates_are_all_different(rates: int) -> None:
    for baseline in baselines(BERT, (0, 10_000), rates):
        assert len({Recipe.from_dict(dict(c)).hash() for c in baseline.candidates}) == rates


def test_head_only_deploys_nothing() -> None:
    assert head_only(BERT, 2).counts["deployed"] == 0
