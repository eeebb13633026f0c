"""Hybrids on a backbone in four bits: beside packed weights they work exactly, on them they are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fingerprint import changed, fingerprint
from support.quantized import Hidden, Packed, dequantised, quantised
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.training import encoded_task, tiny_bert
from transformers import PreTrainedModel

from autopeft.errors import SiteError, UsageError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, evaluate, train


def recipe(*attached: Any, model: tuple[Any, ...] = ()) -> Recipe:
    layers = [{"attach": list(attached)}] if attached else []
    return Recipe.from_dict({"name": "r", "layers": layers, "model": list(model)})


BESIDE = {
    "lora": recipe({"lora": {"rank": 2}}),
    "adapters": recipe("serial_adapter", {"parallel_adapter": {"bottleneck": 4}}),
    "far": recipe({"far": {"retention": 0.2}}),
    "gate": recipe({"gate": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2}}, "ia3"]}),
    "biases": recipe(model=("bitfit",)),
    "prompt": recipe({"ssf": {"sites": ["ffn_norm"]}}, model=({"prompt_tuning": {"length": 2}},)),
}
ON_PACKED = {
    "dora": recipe({"lora": {"rank": 2}}, {"dora": {"rank": 2}}),
    "intrinsic_said": recipe(model=("intrinsic_said",)),
    "fish_mask": recipe(model=({"fish_mask": {"keep": "1%"}},)),
    "sensitivity_tuning": recipe(model=({"sensitivity_tuning": {"keep": "6%"}},)),
    "hiwi": recipe({"hiwi": {"target": "weight"}}),
}


def trained(model: PreTrainedModel, what: Recipe) -> tuple[Hybrid, torch.Tensor, list[torch.Tensor]]:
    """A hybrid with values of a seed, its logits, and the gradients of all that it trains."""
    hybrid = attach(model, what, seed=0)
    randomise(hybrid.root)
    found = logits(model, tiny_inputs("bert"))
    found.square().sum().backward()
    return hybrid, found.detach(), [p.grad for p in hybrid.trainable_parameters() if p.grad is not None]


@pytest.mark.parametrize("name", BESIDE)
def test_where_no_packed_tensor_is_altered_all_is_as_on_the_weights_that_it_computes_with(name: str) -> None:
    packed = quantised(tiny_model("bert"))
    plain = dequantised(packed, tiny_model("bert"))
    before = fingerprint(packed)
    hybrid, found, gradients = trained(packed, BESIDE[name])
    other, expected, others = trained(plain, BESIDE[name])
    torch.testing.assert_close(found, expected)
    assert len(gradients) == len(others) > 0
    for gradient, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-6)
    assert hybrid.counts() == other.counts()
    packed.zero_grad()
    hybrid.detach()
    assert changed(before, fingerprint(packed)) == []


def test_they_are_saved_and_loaded(tmp_path: Path) -> None:
    packed = quantised(tiny_model("bert"))
    hybrid, found, _ = trained(packed, BESIDE["lora"])
    hybrid.save(tmp_path)
    again = load(quantised(tiny_model("bert")), tmp_path)
    torch.testing.assert_close(logits(again.model, tiny_inputs("bert")), found)
    on_plain = load(dequantised(packed_of(hybrid), tiny_model("bert")), tmp_path)
    torch.testing.assert_close(logits(on_plain.model, tiny_inputs("bert")), found)


def packed_of(hybrid: Hybrid) -> PreTrainedModel:
    hybrid.detach()
    return hybrid.model


@pytest.mark.parametrize("name", ON_PACKED)
def test_on_packed_weights_one_sentence_says_what_to_do(name: str) -> None:
    packed = quantised(tiny_model("bert"))
    before = fingerprint(packed)
    with pytest.raises(UsageError) as caught:
        attach(packed, ON_PACKED[name])
    said = str(caught.value)
    assert said.startswith("BertForSequenceClassification is quantized (bitsandbytes, 4 bits), and ")
    assert f"{name} would work on its packed weights" in said
    assert said.endswith("or load the backbone in bf16.")
    assert "\n" not in said
    assert changed(before, fingerprint(packed)) == []


def test_nothing_is_folded_into_packed_weights() -> None:
    packed = quantised(tiny_model("bert"))
    hybrid, found, _ = trained(packed, BESIDE["lora"])
    with pytest.raises(UsageError, match="nothing can be folded into packed weights; save the hybrid"):
        hybrid.merge()
    assert hybrid.attached
    torch.testing.assert_close(logits(packed, tiny_inputs("bert")).detach(), found)


def test_linear_maps_that_hide_their_weights_are_refused() -> None:
    packed = quantised(tiny_model("bert"), Hidden)
    with pytest.raises(SiteError, match=r"\(bitsandbytes, 4 bits\) in such a way that no linear maps are"):
        attach(packed, BESIDE["lora"])


def test_a_packed_head_is_refused_with_how_to_leave_it_out() -> None:
    packed: Any = quantised(tiny_model("bert"))
    packed.classifier = Packed(packed.classifier)
    before = fingerprint(packed)
    with pytest.raises(UsageError, match="its task head 'classifier' too, which has to train; leave"):
        attach(packed, BESIDE["lora"])
    assert changed(before, fingerprint(packed)) == []


def test_packing_for_scores_alone_is_turned_off_or_refused() -> None:
    """bitsandbytes packs weights anew where its flag is set, and no gradient passes through these."""
    model = quantised(tiny_model("bert"))
    packed: list[Any] = [m for m in model.modules() if isinstance(m, Packed)]
    for module in packed:
        module.support_avx512bf16_for_cpu = True
    attach(model, recipe("lora"), seed=0).detach()
    assert not any(module.support_avx512bf16_for_cpu for module in packed)
    packed[-1].weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(UsageError, match=r"has packed the weights of '.*dense' .* load the model anew"):
        attach(model, recipe("lora"), seed=0)


def test_the_trainer_is_refused_and_the_loop_trains() -> None:
    hybrid = attach(quantised(tiny_bert()), BESIDE["lora"], seed=0)
    with pytest.raises(UsageError, match=r"peft's adapters alone; use autopeft\.training\.train or a loop"):
        hybrid.for_trainer()
    before = {name: value.clone() for name, value in hybrid.model.bert.encoder.state_dict().items()}
    data = encoded_task()
    result = train(hybrid, data, TrainingPlan(steps=40, batch_size=16, device="cpu", eval_every=40))
    assert result.final_loss < result.first_loss
    assert result.scores[-1][1] == evaluate(hybrid.model, data.select, data.task.metric)
    after = hybrid.model.bert.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
