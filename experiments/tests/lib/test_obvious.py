"""Both sides of a comparison train the same thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lib import obvious
from lib.draws import peft_words
from support.tiny import VOCABULARY, tiny_config
from transformers import BertForSequenceClassification

from autopeft import Recipe, count, spec_of
from autopeft.hybrid import attach


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config("bert")).eval()


def _on(item: Any, at: str = "1-2", **more: Any) -> Recipe:
    return Recipe.from_dict({"name": "x", "layers": [{"at": at, "attach": [item]}], **more})


@pytest.mark.parametrize(
    "recipe",
    [
        _on({"lora": {"sites": ["q", "v"], "rank": 3}}),
        _on({"lora": {"sites": ["o", "up", "down"], "rank": 2, "alpha": 5.0}}, at="0-1"),
        _on({"dora": {"sites": ["q", "down"], "rank": 2}}),
        _on("ia3"),
        Recipe.from_dict({"name": "x", "model": [{"prompt_tuning": {"length": 5}}]}),
    ],
    ids=["lora", "lora-on-outputs", "dora", "ia3", "prompt"],
)
def test_peft_trains_as_many_parameters_as_we_do(recipe: Recipe) -> None:
    model = tiny_bert()
    spec = spec_of(model.config)
    words = peft_words(recipe, spec)
    wrapped = obvious.say_in_peft(model, words)
    modules = [n for n, p in wrapped.named_parameters() if p.requires_grad and "modules_to_save" not in n]
    trained = sum(p.numel() for n, p in wrapped.named_parameters() if n in modules)
    assert trained == count(recipe, spec).deployed


def test_the_hand_injected_adapter_is_ours() -> None:
    recipe = _on({"serial_adapter": {"bottleneck": 4}})
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = tiny_bert()
        with attach(model, recipe, seed=1) as hybrid:
            for parameter in hybrid.modules["serial_adapter"].parameters():
                parameter.normal_(std=2.0)
            ours = model(ids).logits
            expected = count(recipe, spec_of(model.config)).deployed
            children = {site.layer: hybrid.modules["serial_adapter"][site] for site in hybrid.graph.sites()}
        theirs = obvious.inject_adapters(tiny_bert(), (1, 2), 4)
        trained = [n for n, p in theirs.named_parameters() if p.requires_grad]
        for layer, child in children.items():
            output = theirs.bert.encoder.layer[layer].output
            weights = [p for p in child.parameters() if p.dim() == 2]
            biases = [p for p in child.parameters() if p.dim() == 1]
            for linear, weight, bias in zip((output.down, output.up), weights, biases, strict=True):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
        assert torch.allclose(theirs(ids).logits, ours, atol=1e-6)
        assert not torch.allclose(tiny_bert()(ids).logits, ours, atol=1e-2), "the adapter does nothing"
    adapters = [n for n in trained if not n.startswith("classifier.")]
    assert sum(theirs.get_parameter(n).numel() for n in adapters) == expected
