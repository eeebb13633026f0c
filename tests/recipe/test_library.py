"""Golden counts of the built-in recipes, on backbones read from configs alone."""

from __future__ import annotations

from transformers import BertConfig, RobertaConfig

from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.recipe import Recipe

BERT = spec_of(BertConfig())
ROBERTA = spec_of(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))


def test_mam() -> None:
    graph = build_graph(Recipe.named("mam"), ROBERTA)
    assert graph.parameter_count().deployed == 589_824
    prefix = graph.entries["prefix_tuning"].count
    assert (prefix.deployed, prefix.trained) == (294_912, 15_391_520)


def test_unipelt() -> None:
    graph = build_graph(Recipe.named("unipelt"), BERT)
    deployed = {name: entry.count.deployed for name, entry in graph.entries.items()}
    assert deployed == {"lora": 294_912, "prefix_tuning": 184_320, "serial_adapter": 894_528}
    assert [node.count.deployed for node in graph.nodes()] == [36_912]
    assert graph.parameter_count().deployed == 1_410_672
    assert graph.entries["prefix_tuning"].count.trained == 9_857_024


def test_sapa_prefix() -> None:
    graph = build_graph(Recipe.named("sapa-prefix"), BERT)
    assert graph.parameter_count().deployed == 12 * 2 * 768 * (24 + 24 + 12)
