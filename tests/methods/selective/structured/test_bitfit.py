from __future__ import annotations

import pytest
import torch
from hypothesis import given
from pydantic import ValidationError
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import build, configured, counted, toy_spec, toy_specs
from transformers import BertConfig, DebertaConfig

from autopeft.backbones import spec_of
from autopeft.errors import MethodError
from autopeft.graph import build_graph, hash_of, parts_of
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec


@given(toy_specs)
def test_count_is_what_it_holds(spec: BackboneSpec) -> None:
    deployed, trained, held, held_trained = counted("bitfit", spec)
    assert deployed == trained == held == held_trained


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 102_912),
        ({"pooler": False}, 102_144),
        ({"terms": "partial"}, 46_080),
        ({"terms": ["pooler"]}, 768),
    ],
)
def test_counts_on_bert_base(config: dict[str, object], expected: int) -> None:
    spec = spec_of(BertConfig())
    assert configured("bitfit", **config).parameter_count((), spec).deployed == expected


def test_the_pooler_is_what_its_family_pools_with() -> None:
    """SigLIP's is a module `head`; BERT's one of the name."""
    spec = spec_of(tiny_config("siglip_vision_model"))
    for pooler, names in ((True, {"head.layernorm", "head.mlp.fc1", "head.mlp.fc2"}), (False, set())):
        module = configured("bitfit", pooler=pooler).build((), spec)
        targets = {str(t.tensor).removesuffix(".bias") for t in module.weight_targets()}
        inside = {t for t in targets if t.startswith("head.")}
        assert inside - {"head.attention.in_proj_bias"} == names
        assert len(inside) == len(names) + pooler
    (entry,) = build_graph(
        Recipe.from_dict({"model": [{"bitfit": {"terms": ["pooler"]}}]}), spec
    ).entries.values()
    assert entry.count.deployed == 3 * 32 + 32 + 64 + 32


@pytest.mark.parametrize("method", ["bitfit", "u_bitfit", "s_bitfit"])
def test_biases_that_an_attention_adds_itself_are_biases(method: str) -> None:
    """DeBERTa's, of queries and values: its fused projection has none."""
    options = {} if method == "bitfit" else {"keep": "100%"}
    count = configured(method, **options).parameter_count((), spec_of(DebertaConfig()))
    assert count.deployed == 12 * (6 * 768 + 3072) + 768


def test_on_deberta_every_bias_changes_and_acts() -> None:
    model = tiny_model("deberta")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    hybrid = attach(model, Recipe.from_dict({"model": ["bitfit"]}))
    randomise(hybrid.root)
    expected = logits(model, tiny_inputs("deberta"))
    merged = hybrid.merge()
    torch.testing.assert_close(logits(merged, tiny_inputs("deberta")), expected, atol=1e-5, rtol=1e-5)
    base = dict(merged.base_model.named_parameters(prefix=merged.base_model_prefix))
    changed = {n for n in base if not torch.equal(base[n], before[n])}
    assert changed == {n for n in base if n.endswith("bias")}


def test_targets_are_the_biases_and_nothing_else() -> None:
    spec = toy_spec(layers=1)
    module, _ = build("bitfit", spec)
    assert {str(t.tensor) for t in module.weight_targets()} == {
        t.name for t in spec.tensors if "bias" in t.role
    }
    partial, _ = build("bitfit", spec, terms="partial")
    assert {str(t.tensor) for t in partial.weight_targets()} == {"layers.0.q.bias", "layers.0.up.bias"}
    target = module.weight_targets()[0]
    bias = torch.randn(6)
    assert torch.equal(module.weight(target, bias, bias), bias)


@pytest.mark.parametrize(("at", "layers"), [("first 1", 1), ("last 2", 2), ("all", 12)])
def test_in_some_layers_it_trains_the_biases_inside_them(at: str, layers: int) -> None:
    """7·d + d_ff for each layer: no embeddings, no pooler."""
    recipe = Recipe.from_dict({"layers": [{"at": at, "attach": ["bitfit"]}]})
    (entry,) = build_graph(recipe, spec_of(BertConfig())).entries.values()
    assert entry.count.deployed == entry.count.trained == layers * (7 * 768 + 3072)


def test_what_is_listed_for_a_layer_changes_its_biases_and_no_other() -> None:
    model = tiny_model("bert")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    hybrid = attach(model, Recipe.from_dict({"layers": [{"at": [1], "attach": ["bitfit"]}]}))
    randomise(hybrid.root)
    merged = hybrid.merge()
    changed = {n for n, p in merged.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if ".layer.1." in n and n.endswith(".bias")}


def test_of_layers_and_of_the_model_are_two_things() -> None:
    spec = spec_of(tiny_config("bert"))
    everywhere = build_graph(Recipe.from_dict({"layers": [{"attach": ["bitfit"]}]}), spec)
    whole = build_graph(Recipe.from_dict({"model": ["bitfit"]}), spec)
    assert everywhere.hash() != whole.hash()
    assert whole.entries["bitfit"].sites == ()
    assert hash_of(parts_of(spec).of(everywhere.recipe)) == everywhere.hash()


def test_sites_are_named_as_terms() -> None:
    with pytest.raises(ValidationError, match=r"terms: \['q'\]"):
        configured("bitfit", sites=("q",))


def test_backbones_without_biases_are_refused_with_a_way_out() -> None:
    with pytest.raises(MethodError, match="ia3"):
        configured("bitfit").parameter_count((), toy_spec(bias=False))


def test_a_site_without_bias_is_named_with_those_that_have_one() -> None:
    with pytest.raises(MethodError, match=r"\['q'\].*qkv"):
        configured("bitfit", terms="partial").parameter_count((), spec_of(tiny_config("gpt2")))


def test_a_misspelt_site_gets_near_matches() -> None:
    with pytest.raises(ValidationError, match="'down'"):
        configured("bitfit", terms=["dwon"])


def test_of_a_model_only_biases_change() -> None:
    model = tiny_model("bert")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    hybrid = attach(model, Recipe.from_dict({"autopeft": 2, "name": "b", "model": ["bitfit"]}))
    randomise(hybrid.root)
    merged = hybrid.merge()
    changed = {n for n, p in merged.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if n.endswith(".bias") and not n.startswith("classifier")}
