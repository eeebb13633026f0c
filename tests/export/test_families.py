"""What each family of decoders can be exported as: equal in another's hands, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.families.decoders import DECODERS
from support.tiny import ARCHITECTURES, logits, randomise, tiny_config, tiny_inputs, tiny_model

from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.export.gguf_format import check_gguf
from autopeft.export.lora_factors import NotServable
from autopeft.export.lora_format import to_lora
from autopeft.export.lora_weights import lora_weights
from autopeft.export.peft_format import NotExpressible, to_peft
from autopeft.export.vllm_rules import vllm_findings
from autopeft.graph import build_graph, unservable
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe

NEW = tuple(name for name in DECODERS if name not in ARCHITECTURES)
ELSEWHERE = ("llama", "mistral", "qwen2")  # the families that exports know by name


def recipe(*items: Any, level: str = "layers") -> Recipe:
    return Recipe.from_dict(
        {"name": "x", level: [{"attach": list(items)}] if level == "layers" else list(items)}
    )


def live(name: str, made: Recipe) -> Hybrid:
    hybrid = attach(tiny_model(name), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def sites_of(name: str) -> list[str]:
    spec = spec_of(tiny_config(name))
    return [s for s in ("q", "v", "o", "up", "down") if s in spec.site_names() and s not in spec.lacks]


@pytest.mark.parametrize("name", NEW)
def test_a_lora_is_equal_in_peft_also_on_parts_of_fused_maps(name: str, tmp_path: Path) -> None:
    hybrid = live(name, recipe({"lora": {"rank": 2, "sites": sites_of(name)}}))
    inputs = tiny_inputs(name, pad=2)
    expected = logits(hybrid.model, inputs, length=7)
    found = lora_weights(hybrid)
    assert found.exact
    to_lora(hybrid, found, tmp_path, base_model="x")
    loaded = PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs, length=7), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(logits(tiny_model(name), inputs, length=7), expected, atol=1e-2)


@pytest.mark.parametrize("name", ["whisper", "clip_vision_model", "clip_text_model", "vit", "bert"])
def test_models_that_read_no_words_or_no_vectors_are_called_in_peft_too(name: str, tmp_path: Path) -> None:
    """peft's classes for tasks hand a model words or their vectors, which these do not all take."""
    model = tiny_model(name)
    model = model.base_model if name == "bert" else model
    hybrid = attach(model, recipe({"lora": {"rank": 2, "sites": ["q", "v"]}}), seed=0)
    randomise(hybrid.root)
    inputs = tiny_inputs(name)
    with torch.no_grad():
        expected = model.eval()(**inputs)[0]
    to_peft(hybrid, tmp_path, base_model="x")
    plain = tiny_model(name)
    loaded = PeftModel.from_pretrained(plain.base_model if name == "bert" else plain, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs)[0], expected, atol=2e-5, rtol=1e-4)
    said = json.loads((tmp_path / "adapter_config.json").read_text())["task_type"]
    assert said == ("FEATURE_EXTRACTION" if name == "bert" else None)


@pytest.mark.parametrize("name", NEW)
def test_peft_s_own_words_are_equal_or_refused_before_and_after_training(name: str, tmp_path: Path) -> None:
    made = recipe({"lora": {"rank": 2, "sites": sites_of(name)}})
    spec = spec_of(tiny_config(name))
    fused = any(site.fused for site in build_graph(made, spec).sites())
    assert (unservable(build_graph(made, spec), "peft", head=False) is not None) == fused
    hybrid, inputs = live(name, made), tiny_inputs(name, pad=2)
    if fused:
        with pytest.raises(NotExpressible, match="part of a fused projection"):
            to_peft(hybrid, tmp_path)
        return
    to_peft(hybrid, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
    expected = logits(hybrid.model, inputs, length=7)
    torch.testing.assert_close(logits(loaded, inputs, length=7), expected, atol=2e-5, rtol=1e-4)


def test_a_part_without_a_whole_site_is_to_be_left_out() -> None:
    graph = build_graph(recipe({"lora": {"sites": ["up"]}}), spec_of(tiny_config("phi3")))
    assert "up is a part of a fused projection" in str(unservable(graph, "peft", head=False))
    assert "leave it out" in str(unservable(graph, "peft", head=False))


@pytest.mark.parametrize("name", NEW)
def test_a_prompt_is_equal_in_peft(name: str, tmp_path: Path) -> None:
    hybrid = live(name, recipe({"prompt_tuning": {"length": 3}}, level="model"))
    inputs = {"input_ids": tiny_inputs(name)["input_ids"]}
    to_peft(hybrid, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(name), tmp_path).eval()
    expected = logits(hybrid.model, inputs)
    torch.testing.assert_close(logits(loaded, inputs)[:, -7:], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NEW)
def test_a_prefix_is_refused(name: str, tmp_path: Path) -> None:
    """peft's slides out of a window, and how another family's keys turn is not known."""
    hybrid = live(name, recipe({"prefix_tuning": {"length": 3}}))
    reason = "slides out of the attention window" if name in ELSEWHERE else "other position embeddings"
    with pytest.raises(NotExpressible, match=reason):
        to_peft(hybrid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in NEW if name not in ELSEWHERE])
def test_what_another_program_makes_of_a_family_is_not_guessed(name: str) -> None:
    with pytest.raises(NotServable, match=f"written for {', '.join(ELSEWHERE)}, and this is '{name}'"):
        check_gguf(tiny_model(name))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["a.q_proj"]}
    (maps,) = [finding for finding in vllm_findings(config, name) if finding.rule == "maps"]
    assert maps.state == "unknown"
    assert f"{name!r} is not known here" in maps.text


@pytest.mark.parametrize("name", ["cohere", "phi", "stablelm", "gemma", "gemma2", "starcoder2"])
def test_what_is_added_behind_a_norm_goes_to_all_that_read_it(name: str) -> None:
    """Of sub-layers side by side both; Cohere's norms have no bias to take it, and Gemma's scale by 1 + w."""
    hybrid = live(name, recipe({"ssf": {"sites": ["attention_norm"], "outer": False}}))
    inputs = tiny_inputs(name, pad=2)
    expected = logits(hybrid.model, inputs, length=7)
    merged = logits(hybrid.merge(), inputs, length=7)
    torch.testing.assert_close(merged, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "site"), [("mixtral", "ffn_norm"), ("olmo2", "attention_norm")])
def test_where_no_known_maps_read_a_norm_merging_is_refused(name: str, site: str) -> None:
    hybrid = live(name, recipe({"ssf": {"sites": [site], "outer": False}}))
    with pytest.raises(UsageError, match="no bias, and what is added behind it"):
        hybrid.merge()


def test_maps_that_peft_would_take_for_experts_are_refused(tmp_path: Path) -> None:
    made = recipe({"lora": {"rank": 2, "sites": ["down"]}})
    hybrid = live("qwen3_moe", made)
    with pytest.raises(NotServable, match="for the experts of other layers"):
        to_lora(hybrid, lora_weights(hybrid), tmp_path / "out")
    with pytest.raises(NotExpressible, match="for the experts of other layers"):
        to_peft(hybrid, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for way in ("peft", "vllm"):
        assert "for the experts" in str(unservable(hybrid.graph, way, head=False))
