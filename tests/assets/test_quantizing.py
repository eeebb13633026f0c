"""Backbones by name in 8 and 4 bits: they compute with the weights that their numbers stand for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantized import unpacked
from support.saved_model import save_backbone
from support.tiny import randomise
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from autopeft.assets import (
    backbone_fingerprint,
    check_quantize,
    load_model,
    map_weights,
    quantization_of,
    quantizing,
    resolve_model,
)
from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe

BOTH = ("int8", "int4")
IDS = torch.arange(4, 11).repeat(3, 1)
RECIPE = Recipe.from_dict(
    {
        "name": "r",
        "layers": [
            {"attach": ["lora", {"gate": ["serial_adapter", "ia3"]}, {"prefix_tuning": {"length": 2}}]},
        ],
        "model": ["bitfit"],
    }
)


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return str(save_backbone(tmp_path / "bert", biases=0.1))


def loaded(name: str, quantize: str | None) -> Any:
    if quantize is not None:
        pytest.importorskip(quantizing._LIBRARIES[quantize])
    return load_model(resolve_model(name, quantize=quantize))


def test_names_are_checked_and_a_missing_library_is_named(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="`quantize` must be 'int8' or 'int4', but got quantize='int3'"):
        check_quantize("int3")
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package torchao.*pip install 'autopeft\[quantized\]'"):
        resolve_model(backbone, quantize="int8")


@pytest.mark.parametrize("quantize", BOTH)
def test_the_maps_of_the_layers_are_quantised_and_nothing_else(backbone: str, quantize: str) -> None:
    model = loaded(backbone, quantize)
    assert f"{quantize[-1]} bits" in str(quantization_of(model))
    plain = {
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and type(m.weight) is nn.Parameter
    }
    assert plain == {"classifier", "bert.pooler.dense"}
    assert type(model.get_input_embeddings().weight) is nn.Parameter
    head = load_model(backbone).classifier.weight
    assert torch.equal(model.classifier.weight, head), "the seed draws the same head"


@pytest.mark.parametrize("quantize", BOTH)
def test_outputs_and_gradients_are_those_of_the_weights_that_it_computes_with(
    backbone: str, quantize: str
) -> None:
    packed = loaded(backbone, quantize)
    found = []
    for model in (packed, unpacked(packed), load_model(backbone)):
        hybrid = attach(model, RECIPE, seed=0)
        randomise(hybrid.root)
        outputs = model(input_ids=IDS).logits
        outputs.square().sum().backward()
        found.append((outputs.detach(), [p.grad for p in hybrid.trainable_parameters()]))
    (ours, gradients), (theirs, expected), (exact, _) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)
    assert float((ours - exact).abs().max()) > 0, "something was rounded"


@pytest.mark.parametrize("quantize", BOTH)
def test_scoring_changes_no_gradient(backbone: str, quantize: str) -> None:
    """Weights that were packed anew for forwards without gradients would let none through afterwards."""
    model = loaded(backbone, quantize).eval()
    hybrid = attach(model, RECIPE, seed=0)
    randomise(hybrid.root)

    def gradients() -> list[torch.Tensor]:
        found = model(input_ids=IDS).logits.square().sum()
        return list(torch.autograd.grad(found, list(hybrid.trainable_parameters())))

    before = gradients()
    with torch.no_grad():
        model(input_ids=IDS)
    for again, gradient in zip(gradients(), before, strict=True):
        assert torch.equal(again, gradient)


def test_a_step_keeps_no_weight_in_full_for_its_backward(backbone: str) -> None:
    model = loaded(backbone, "int8")
    maps = [m for m in model.bert.encoder.modules() if isinstance(m, nn.Linear)]
    full = {(m.out_features, m.in_features) for m in maps}
    full |= {shape[::-1] for shape in full}
    own = {p.data_ptr() for p in model.parameters()}
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tuple(tensor.shape))
        return tensor

    attach(model, Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 3}}]}]}), seed=0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=IDS).logits.sum()
    assert kept
    assert not full & set(kept)


@pytest.mark.parametrize("quantize", BOTH)
def test_it_has_a_fingerprint_and_is_shared_between_processes(backbone: str, quantize: str) -> None:
    model = loaded(backbone, quantize)
    before, outputs = backbone_fingerprint(model), model(input_ids=IDS).logits
    assert before == backbone_fingerprint(loaded(backbone, quantize))
    assert before != backbone_fingerprint(load_model(backbone))
    assert map_weights(model)
    assert torch.equal(model(input_ids=IDS).logits, outputs)
    assert backbone_fingerprint(model) == before
    assert torch.equal(copy.deepcopy(model)(input_ids=IDS).logits, outputs)


def test_another_weight_is_another_fingerprint(tmp_path: Path) -> None:
    one, other = (loaded(str(save_backbone(tmp_path / str(seed), seed=seed)), "int8").bert for seed in (0, 1))
    other.embeddings.load_state_dict(one.embeddings.state_dict())
    other.pooler.load_state_dict(one.pooler.state_dict())
    assert backbone_fingerprint(one) != backbone_fingerprint(other)


def test_maps_of_another_class_are_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    pytest.importorskip("torchao")
    with pytest.raises(UsageError, match=r"\(gpt2\) have no linear map of torch's own class"):
        load_model(resolve_model(str(tmp_path), quantize="int8"))
