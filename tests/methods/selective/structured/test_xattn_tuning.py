"""Cross-attention tuning: the cross-attention with its norm, and embeddings where they are asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.tiny import (
    ARCHITECTURES,
    ENCODER_DECODERS,
    logits,
    randomise,
    snapshot,
    tiny_config,
    tiny_inputs,
    tiny_model,
)
from support.toy import configured
from transformers import BartConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError, MethodError, UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe

CROSS = {"bart": r"decoder\.layers\.\d\.encoder_attn", "t5": r"decoder\.block\.\d\.layer\.1\."}
D, LAYERS, WORDS, POSITIONS = 32, 3, 50, 64 + 2  # of the tiny models; BART's tables have two rows more


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"name": "x", "model": [{"xattn_tuning": config}]})


def cross_attention(name: str) -> set[str]:
    """The tensors of the cross-attention and its norm, by the names of transformers."""
    named = tiny_model(name).base_model.named_parameters()
    return {n for n, _ in named if re.match(CROSS[name], n)}


def trained(name: str, recipe: Recipe) -> set[str]:
    with attach(tiny_model(name), recipe) as hybrid:
        module: Any = next(iter(hybrid.modules.values()))
        return {str(target.tensor) for target in module.weight_targets()}


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_trained_are_the_cross_attention_and_its_norm(name: str) -> None:
    names = trained(name, recipe())
    assert names == cross_attention(name)
    assert len(names) == LAYERS * (10 if name == "bart" else 5)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bart", {}, LAYERS * (4 * D * D + 6 * D)),
        ("t5", {}, LAYERS * (4 * D * D + D)),
        ("bart", {"embeddings": "source"}, LAYERS * (4 * D * D + 6 * D) + WORDS * D + POSITIONS * D + 2 * D),
        (
            "bart",
            {"embeddings": "both"},
            LAYERS * (4 * D * D + 6 * D) + WORDS * D + 2 * (POSITIONS * D + 2 * D),
        ),
        ("t5", {"embeddings": "target"}, LAYERS * (4 * D * D + D) + WORDS * D),
        ("t5", {"embeddings": "both"}, LAYERS * (4 * D * D + D) + WORDS * D),
    ],
)
def test_the_count_is_the_closed_form(name: str, options: dict[str, Any], expected: int) -> None:
    with attach(tiny_model(name), recipe(**options)) as hybrid:
        counts = hybrid.counts()
        assert counts.deployed == counts.trained == expected
        assert sum(p.numel() for p in hybrid.root.parameters()) == expected


def test_counts_of_published_sizes() -> None:
    assert configured("xattn_tuning").parameter_count((), spec_of(BartConfig())).deployed == 12 * (
        4 * 1024**2 + 6 * 1024
    )
    narrow = T5Config(d_model=512, d_kv=64, num_heads=6, num_layers=8)
    assert configured("xattn_tuning").parameter_count((), spec_of(narrow)).deployed == 8 * (
        4 * 512 * 6 * 64 + 512
    )


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_training_leaves_all_else_bit_identical(name: str) -> None:
    model = tiny_model(name)
    before = snapshot(model.base_model)
    hybrid = attach(model, recipe())
    optimizer = hybrid.optimizer()
    for _ in range(2):
        optimizer.zero_grad()
        logits(model, tiny_inputs(name)).pow(2).mean().backward()
        optimizer.step()
    hybrid.merge()
    after = snapshot(model.base_model)
    assert {n for n in before if not torch.equal(before[n], after[n])} == cross_attention(name)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_embeddings_of_one_side_leave_those_of_the_other(name: str) -> None:
    sides = {side: trained(name, recipe(embeddings=side)) - cross_attention(name) for side in
             ("source", "target", "both")}  # fmt: skip
    assert sides["source"] & sides["target"] == {"shared.weight"}
    assert sides["both"] == sides["source"] | sides["target"]
    own = {
        "bart": {f"encoder.{n}" for n in ("embed_positions.weight", "layernorm_embedding.weight",
                                          "layernorm_embedding.bias")},
        "t5": set[str](),
    }[name]  # fmt: skip
    assert sides["source"] == own | {"shared.weight"}


def test_a_shared_table_is_trained_once_and_everywhere() -> None:
    """The encoder, the decoder and the tied projection read one tensor, and one delta alters all of it."""
    model = tiny_model("t5")
    hybrid = attach(model, recipe(embeddings="source"))
    randomise(hybrid.root)
    inputs = tiny_inputs("t5")
    expected = logits(model, inputs)
    merged: Any = hybrid.merge()
    assert merged.lm_head.weight is merged.shared.weight is merged.decoder.embed_tokens.weight
    torch.testing.assert_close(logits(merged, inputs), expected, atol=3e-5, rtol=1e-4)


def test_in_some_layers_it_trains_that_of_these_layers() -> None:
    one = Recipe.from_dict({"name": "x", "layers": [{"at": [1], "attach": ["xattn_tuning"]}]})
    assert trained("bart", one) == {n for n in cross_attention("bart") if ".layers.1." in n}
    (entry,) = build_graph(one, spec_of(tiny_config("bart"))).entries.values()
    assert entry.count.deployed == 4 * D * D + 6 * D


def test_values_are_fp32_and_decay_towards_the_pretrained_ones() -> None:
    model = tiny_model("t5").to(torch.bfloat16)  # type: ignore[arg-type]
    with attach(model, recipe()) as hybrid:
        assert {p.dtype for p in hybrid.root.parameters()} == {torch.float32}
        parameters = list(hybrid.root.parameters())
        assert not any(p.any() for p in parameters)
        optimizer = hybrid.optimizer()
        for group in optimizer.param_groups:
            group["weight_decay"], group["lr"] = 0.1, 0.5
        with torch.no_grad():
            for p in parameters:
                p.fill_(1.0)
                p.grad = torch.zeros_like(p)
        optimizer.step()
        for p in parameters:  # v is what decays: θ by as much towards θ₀
            torch.testing.assert_close(p.detach(), torch.full_like(p, 0.95))


@pytest.mark.parametrize("embeddings", ["none", "both"])
def test_a_saved_one_is_loaded_as_it_was(embeddings: str, tmp_path: Any) -> None:
    inputs = tiny_inputs("bart")
    with attach(tiny_model("bart"), recipe(embeddings=embeddings)) as hybrid:
        randomise(hybrid.root)
        hybrid.save(tmp_path)
        wanted = logits(hybrid.model, inputs)
    again = load(tiny_model("bart"), tmp_path)
    assert torch.equal(logits(again.model, inputs), wanted)


@pytest.mark.parametrize("name", [a for a in ARCHITECTURES if a not in ENCODER_DECODERS])
@pytest.mark.parametrize("level", ["model", "layers"])
def test_without_cross_attention_it_is_refused_with_a_way_out(name: str, level: str) -> None:
    item: Any = ["xattn_tuning"] if level == "model" else [{"attach": ["xattn_tuning"]}]
    with pytest.raises(CompositionError, match=r"no cross-attention; .*T5 or BART.*lora"):
        attach(tiny_model(name), Recipe.from_dict({"name": "x", level: item}))


def test_refusals() -> None:
    with pytest.raises(MethodError, match="no cross-attention"):
        configured("xattn_tuning").parameter_count((), spec_of(tiny_config("gpt2")))
    in_layers = {"attach": [{"xattn_tuning": {"embeddings": "both"}}]}
    with pytest.raises(UsageError, match="under 'model:'"):
        attach(tiny_model("t5"), Recipe.from_dict({"name": "x", "layers": [in_layers]}))
    with pytest.raises(ValidationError, match="lora with sites such as cross_q"):
        configured("xattn_tuning", sites=("cross_q",))
    with pytest.raises(ValidationError, match="embeddings"):
        configured("xattn_tuning", embeddings="some")
