"""Exported adapters load in Hugging Face peft and give the same logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.cases import recipe_of
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from autopeft.export.peft_format import NotExpressible, peft_adapter, to_peft
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe

BERT = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    num_labels=3,
)
ROBERTA = RobertaConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_labels=3,
)
DISTIL = DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3)
GPT2 = GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64)
LLAMA = LlamaConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
)


def fresh(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(copy.deepcopy(config)).eval()


def trained(model: PreTrainedModel, recipe: dict[str, Any]) -> Hybrid:
    """A hybrid with every parameter, head included, moved away from its init."""
    hybrid = attach(model, Recipe.from_dict(recipe), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in hybrid.trainable_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return hybrid


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {"input_ids": torch.randint(5, 60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


def padded() -> dict[str, Tensor]:
    batch = inputs()
    batch["attention_mask"][1, 4:] = 0
    return batch


def layers(*attach: Any, at: Any = "all") -> dict[str, Any]:
    return {"name": "x", "layers": [{"at": at, "attach": list(attach)}]}


UNEVEN = {
    "name": "uneven",
    "layers": [
        {"at": [0], "attach": [{"lora": {"rank": 2, "alpha": 3, "sites": ["q", "v", "up"]}}]},
        {"at": [2], "attach": [{"lora": {"rank": 4, "rank_stabilized": True, "sites": ["q", "down"]}}]},
    ],
}
CASES = {
    "bert-lora": (BertForSequenceClassification, BERT, layers({"lora": {"rank": 3}})),
    "bert-lora-per-layer": (BertForSequenceClassification, BERT, UNEVEN),
    "roberta-lora": (RobertaForSequenceClassification, ROBERTA, layers({"lora": {"sites": ["k", "o"]}})),
    "distilbert-lora": (DistilBertForSequenceClassification, DISTIL, layers("lora", at=[1])),
    **{
        f"bert-{name}": (
            BertForSequenceClassification,
            BERT,
            layers({name: {"rank": 2, "sites": ["q", "up"]}}),
        )
        for name in (
            "moslora",
            "capaboost",
            "dylora",
            "adalora",
            "sora",
            "autolora",
            "periodic_lora",
        )
    },
    "bert-lora_dropout": (
        BertForSequenceClassification,
        BERT,
        layers({"lora_dropout": {"rank": 2, "sites": ["q", "up"], "ensemble": 0}}),
    ),
    "bert-laplace-mean": (
        BertForSequenceClassification,
        BERT,
        layers({"laplace_lora": {"rank": 2, "samples": 0}}),
    ),
    "bert-adamix": (
        BertForSequenceClassification,
        BERT,
        layers({"adamix": {"children": [{"lora": {"sites": ["q", "up"]}}], "copied": "both"}}),
    ),
    "bert-weight_drop": (BertForSequenceClassification, BERT, layers({"weight_drop": ["lora"]})),
    "bert-dora": (BertForSequenceClassification, BERT, layers({"dora": {"rank": 2, "alpha": 5}})),
    "bert-ia3": (BertForSequenceClassification, BERT, layers("ia3")),
    "gpt2-lora-fused": (GPT2LMHeadModel, GPT2, layers({"lora": {"sites": ["qkv", "down"]}})),
    "gpt2-dora-fused": (GPT2LMHeadModel, GPT2, layers({"dora": {"sites": ["qkv"], "rank": 2}})),
    "gpt2-ia3-fused": (GPT2LMHeadModel, GPT2, layers({"ia3": {"sites": ["qkv", "down"]}})),
    "llama-lora": (LlamaForCausalLM, LLAMA, layers({"lora": {"sites": ["q", "v", "gate_proj"]}})),
    "llama-prompt": (LlamaForCausalLM, LLAMA, {"name": "p", "model": [{"prompt_tuning": {"length": 4}}]}),
    "gpt2-p-tuning": (
        GPT2LMHeadModel,
        GPT2,
        {"name": "p", "model": [{"p_tuning": {"length": 4, "dropout": 0.5}}]},
    ),
    "gpt2-prompt": (GPT2LMHeadModel, GPT2, {"name": "p", "model": [{"prompt_tuning": {"length": 4}}]}),
    "llama-spot": (LlamaForCausalLM, LLAMA, {"name": "p", "model": [{"spot": {"length": 4}}]}),
    "gpt2-tpt": (GPT2LMHeadModel, GPT2, recipe_of("tpt").to_dict()),
    "llama-prefix": (LlamaForCausalLM, LLAMA, layers({"prefix_tuning": {"length": 5}})),
    "llama-p-tuning-v2": (LlamaForCausalLM, LLAMA, layers({"p_tuning_v2": {"length": 5}})),
    "llama-prefix-mlp": (
        LlamaForCausalLM,
        LLAMA,
        layers({"prefix_tuning": {"length": 5, "reparameterization": 7}}),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_it_with_equal_logits(case: str, tmp_path: Path) -> None:
    kind, config, recipe = CASES[case]
    hybrid = trained(fresh(kind, config), recipe)
    batch = padded() if kind.__name__.endswith("Classification") else inputs()
    with torch.no_grad():
        ours = hybrid.model(**batch).logits
        untouched = fresh(kind, config)(**batch).logits
    to_peft(hybrid, tmp_path)
    theirs = PeftModel.from_pretrained(fresh(kind, config), tmp_path).eval()
    with torch.no_grad():
        logits = theirs(**batch).logits[:, -ours.shape[1] :]
    assert (ours - untouched).abs().max() > 1e-2
    assert torch.allclose(logits, ours, atol=1e-5), (logits - ours).abs().max()


def test_sites_that_training_has_left_without_a_rank_are_left_out(tmp_path: Path) -> None:
    model = fresh(BertForSequenceClassification, BERT)
    hybrid = trained(model, layers({"sora": {"rank": 2, "sites": ["q", "v"]}}))
    module: Any = hybrid.modules["sora"]
    gates = list(module.gates())
    with torch.no_grad():
        gates[0].zero_()
        gates[1][0] = 0.0
        ours = hybrid.model(**padded()).logits
    to_peft(hybrid, tmp_path)
    theirs = PeftModel.from_pretrained(fresh(BertForSequenceClassification, BERT), tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(**padded()).logits, ours, atol=1e-5)
        for gate in gates:
            gate.zero_()
    with pytest.raises(NotExpressible, match="no rank anywhere"):
        to_peft(hybrid, tmp_path)


def test_rope_turns_prefix_keys_and_leaves_values(tmp_path: Path) -> None:
    hybrid = trained(fresh(LlamaForCausalLM, LLAMA), layers({"p_tuning_v2": {"length": 5}}))
    table = peft_adapter(hybrid).tensors["prompt_embeddings"]
    assert table.shape == (5, 3 * 2 * 8)
    rows = hybrid.modules["p_tuning_v2"].state_dict()
    first = next(v for k, v in rows.items() if "decoder-0-attention" in k)
    assert torch.equal(table[:, 8:16], first[:, 8:])
    assert not torch.allclose(table[:, :8], first[:, :8])


REFUSED: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any], str]] = {
    "two methods": (BertForSequenceClassification, BERT, layers("lora", "ia3"), "holds one method"),
    "no words": (BertForSequenceClassification, BERT, layers("parallel_adapter"), "no method that equals"),
    "ensemble": (
        BertForSequenceClassification,
        BERT,
        layers("lora_dropout"),
        "lora_dropout predicts with several models",
    ),
    "posterior": (
        BertForSequenceClassification,
        BERT,
        layers("laplace_lora"),
        "several models .an ensemble, a posterior.",
    ),
    "gate": (BertForSequenceClassification, BERT, layers({"gate": ["lora"]}), "no composition like 'gate'"),
    "nothing": (BertForSequenceClassification, BERT, {"name": "none"}, "no entries"),
    "same site twice": (
        BertForSequenceClassification,
        BERT,
        layers({"lora": {"rank": 2}}, {"lora": {"rank": 4}}),
        "share the site",
    ),
    "part of a fused projection": (
        GPT2LMHeadModel,
        GPT2,
        layers({"lora": {"sites": ["q"]}}),
        "'qkv' instead",
    ),
    "prefix for classification": (
        BertForSequenceClassification,
        BERT,
        layers("prefix_tuning"),
        "causal language models only",
    ),
    "learned positions": (GPT2LMHeadModel, GPT2, layers("prefix_tuning"), "position embeddings"),
    "prefix in some layers": (LlamaForCausalLM, LLAMA, layers("prefix_tuning", at=[0]), "one length in all"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_cannot_say_is_refused(case: str, tmp_path: Path) -> None:
    kind, config, recipe, reason = REFUSED[case]
    hybrid = trained(fresh(kind, config), recipe)
    with pytest.raises(NotExpressible, match=reason):
        to_peft(hybrid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_patterns_match_their_own_layer_only(tmp_path: Path) -> None:
    """`layer.1` must not give its rank to `layer.11` (peft would refuse the shapes)."""
    many = BertConfig(
        vocab_size=60, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=8
    )
    blocks = [
        {"at": [i], "attach": [{"lora": {"rank": 2 if i == 1 else 3, "sites": ["q"]}}]} for i in range(12)
    ]
    hybrid = trained(fresh(BertForSequenceClassification, many), {"name": "m", "layers": blocks})
    assert list(peft_adapter(hybrid).config["rank_pattern"].values()) == [2]
    to_peft(hybrid, tmp_path)
    theirs = PeftModel.from_pretrained(fresh(BertForSequenceClassification, many), tmp_path)
    ranks = [len(p) for name, p in theirs.named_parameters() if "lora_A" in name]
    assert ranks == [3, 2, *[3] * 10]


def test_the_hybrid_is_left_as_it_was(tmp_path: Path) -> None:
    hybrid = trained(fresh(LlamaForCausalLM, LLAMA), layers({"prefix_tuning": {"length": 5, "dropout": 0.5}}))
    hybrid.model.train()
    before = {k: v.clone() for k, v in hybrid.model.state_dict().items()}
    modes = [m.training for m in hybrid.model.modules()]
    to_peft(hybrid, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in hybrid.model.state_dict().items())
    assert [m.training for m in hybrid.model.modules()] == modes
