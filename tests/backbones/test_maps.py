"""MPNet's map, by the names of its modules and by counts at the size that is packaged."""

from __future__ import annotations

import pytest
from support.tiny import tiny_model
from transformers import AutoModelForSequenceClassification, MPNetConfig

from autopeft.backbones import layout_of, spec_of
from autopeft.counting import count
from autopeft.graph import build_graph
from autopeft.recipe import Recipe

BASE = MPNetConfig(max_position_embeddings=514)  # as all-mpnet-base-v2 has it


def test_places_of_mpnet() -> None:
    layout = layout_of(tiny_model("mpnet").base_model)
    assert not layout.generic
    (stack,) = layout.stacks
    assert stack.layers == ("encoder.layer.0", "encoder.layer.1", "encoder.layer.2")
    assert stack.embeddings == "embeddings"
    found = {p.site.name: (p.entry, p.exit, p.norm) for p in stack.places if p.site.layer in (None, 1)}
    layer = "encoder.layer.1"
    inside = {
        "attention": ("attention.attn", "attention.dropout", "attention.LayerNorm"),
        "ffn": ("intermediate", "output.dropout", "output.LayerNorm"),
    }
    one = {
        **{name: f"attention.attn.{name}" for name in "qkvo"},
        "up": "intermediate.dense",
        "down": "output.dense",
        "attention_norm": "attention.LayerNorm",
        "ffn_norm": "output.LayerNorm",
    }
    table = "embeddings.word_embeddings"
    assert found == {
        "embeddings": (table, table, None),
        "layer": (layer, layer, None),
        **{name: tuple(f"{layer}.{path}" for path in paths) for name, paths in inside.items()},
        **{name: (f"{layer}.{path}", f"{layer}.{path}", None) for name, path in one.items()},
    }


def test_the_spec_of_mpnet_base() -> None:
    spec, task = spec_of(BASE), spec_of(BASE, AutoModelForSequenceClassification)
    assert spec.parameters == task.parameters == 109_486_464
    assert spec.max_positions == 512  # positions count from padding_idx + 1
    assert spec.pooler
    assert not task.pooler
    assert spec.stacks[0].head_dim == 64
    assert all(not s.pre_norm for s in spec.sites if s.name in ("attention", "ffn"))


def test_positions_are_counted_by_the_padding_of_mpnets_code_not_of_its_config() -> None:
    assert spec_of(MPNetConfig(max_position_embeddings=514, pad_token_id=0)).max_positions == 512


@pytest.mark.parametrize(
    ("items", "deployed"),
    [
        ([{"lora": {"rank": 8, "sites": ["q", "v"]}}], 12 * 2 * 8 * (768 + 768)),
        ([{"prefix_tuning": {"length": 16, "reparameterization": None}}], 12 * 2 * 16 * 768),
        ([{"parallel_adapter": {"bottleneck": 8, "bias": False}}], 12 * 2 * 8 * 768),
        (["ia3"], 12 * (768 + 768 + 3072)),
    ],
)
def test_counts_on_mpnet_base(items: list[object], deployed: int) -> None:
    spec = spec_of(BASE)
    graph = build_graph(Recipe.from_dict({"layers": [{"attach": items}]}), spec)
    assert count(graph, spec).deployed == deployed
