from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import build, configured, counted, sites_of, toy_spec, toy_specs
from torch import Tensor
from transformers import RobertaConfig

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError, MethodError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.method import WeightTarget
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

MODES = ["bias", "weight"]


def recipe(*layers: Any, model: Any = ()) -> Recipe:
    return Recipe.from_dict({"name": "h", "layers": [{"attach": list(layers)}], "model": list(model)})


def attached(name: str, **config: Any) -> tuple[Any, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, recipe({"hiwi": config}), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid


@given(toy_specs, st.integers(1, 8), st.sampled_from(MODES))
def test_counts_are_what_it_holds(spec: BackboneSpec, rank: int, target: str) -> None:
    deployed, trained, held, held_trained = counted("hiwi", spec, rank=rank, target=target)
    assert (deployed, trained) == (held, held_trained)


@pytest.mark.parametrize(("rank", "share"), [(4, 0.0028), (16, 0.0111)])
def test_counts_of_the_paper(rank: int, share: float) -> None:
    """RoBERTa-large: 0.03 % stored; the trained shares fit an adapter without biases and no other."""
    large = RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    spec = spec_of(large)
    method = configured("hiwi", rank=rank)
    count = method.parameter_count(sites_of(method, spec), spec)
    assert (count.deployed, count.trained) == (122_880, 245_760 * rank)
    assert round(count.deployed / spec.parameters, 4) == 0.0003
    assert round(count.trained / spec.parameters, 4) == share
    assert round((count.trained + 24 * 2 * rank + 122_880) / spec.parameters, 4) != share


@pytest.mark.parametrize("target", MODES)
def test_what_is_stored_does_not_depend_on_the_rank(target: str) -> None:
    spec = toy_spec()
    small, large = (counted("hiwi", spec, rank=r, target=target) for r in (1, 5))
    assert small[0] == large[0] == small[2] == large[2]
    assert small[1] * 5 == large[1]


def by_hand(module: Any, site: Any, original: Tensor, activation: Any) -> Tensor:
    adapter = module[site].adapter
    down, up = adapter.down.weight, adapter.up.weight
    if original.ndim == 1:
        return up @ activation(down @ original)
    return torch.stack([up @ activation(down @ row) for row in original])


@pytest.mark.parametrize("target", MODES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_formula(target: str, activation: str) -> None:
    functions = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}
    torch.manual_seed(0)  # with few units, a ReLU may have none that is alive
    module, sites = build("hiwi", toy_spec(), rank=8, target=target, activation=activation)
    wide = target == "weight"
    shapes = [(s.out_features, s.in_features) if wide else (s.out_features,) for s in sites]
    originals = list(zip(sites, module.weight_targets(), map(torch.randn, shapes), strict=True))
    for _, change, original in originals:
        assert torch.equal(module.weight(change, original, original), original)
    randomise(module)
    for site, change, original in originals:
        expected = original + by_hand(module, site, original, functions[activation])
        torch.testing.assert_close(module.weight(change, original, original), expected)
        assert not torch.allclose(expected, original, atol=1e-3)


def test_sits_on_the_biases_of_the_ffn_by_default() -> None:
    module, _ = build("hiwi", toy_spec(layers=1))
    assert module.weight_targets() == [
        WeightTarget(tensor="layers.0.up.bias"), WeightTarget(tensor="layers.0.down.bias")
    ]  # fmt: skip
    names = {s.name for s in attached("llama", target="weight")[1].graph.sites()}
    assert names == {"up", "gate_proj", "down"}


@pytest.mark.parametrize("target", MODES)
def test_reads_the_original_as_a_constant_and_nothing_that_others_made_of_it(target: str) -> None:
    module, _ = build("hiwi", toy_spec(), rank=2, target=target)
    randomise(module)
    change = module.weight_targets()[0]
    original = torch.randn(10, 6) if target == "weight" else torch.randn(10)
    original.requires_grad_()
    others = torch.randn_like(original)
    alone, after = (
        module.weight(change, original, original),
        module.weight(change, original, original + others),
    )
    torch.testing.assert_close(after - others, alone)
    upstream = torch.randn_like(original)
    (alone * upstream).sum().backward()
    torch.testing.assert_close(original.grad, upstream)  # through `current` alone
    learnt = {n for n, p in module.named_parameters() if p.grad is not None}
    assert learnt == {f"at.encoder-0-up.adapter.{n}.weight" for n in ("down", "up")}


@pytest.mark.parametrize("order", [1, -1])
def test_the_changes_of_other_methods_add_in_either_order(order: int) -> None:
    items = [{"hiwi": {"rank": 2}}, {"hiwi": {"rank": 2, "target": "weight"}, "as": "rows"}, "dora"][::order]
    model = tiny_model("bert")
    hybrid = attach(model, recipe(*items, {"dora": {"sites": ["up"]}, "as": "d"}, model=["bitfit"]), seed=0)
    for i, (_, module) in enumerate(sorted(hybrid.modules.items())):
        randomise(module, std=0.3, seed=i)
    linear = model.bert.encoder.layer[1].intermediate.dense
    before = {"weight": linear.weight.detach().clone(), "bias": linear.bias.detach().clone()}
    modules: Any = hybrid.modules
    site = next(s for s in hybrid.graph.sites() if s.key == "encoder-1-up")
    weight, name = WeightTarget(site=site), "encoder.layer.1.intermediate.dense.bias"
    expected = {
        "weight": before["weight"]
        + sum(
            modules[m].weight(weight, before["weight"], before["weight"]) - before["weight"]
            for m in ("rows", "d")
        ),
        "bias": before["bias"]
        + by_hand(modules["hiwi"], site, before["bias"], torch.nn.functional.gelu)
        + modules["bitfit"].biases[name],
    }
    hybrid.merge()
    for key, value in expected.items():
        torch.testing.assert_close(getattr(linear, key), value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("target", MODES)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_baked_equals_live_bit_for_bit(name: str, target: str) -> None:
    model, hybrid = attached(name, rank=2, target=target)
    live = logits(model, tiny_inputs(name))
    assert not torch.allclose(live, logits(tiny_model(name), tiny_inputs(name)), atol=1e-2)
    module: Any = hybrid.modules["hiwi"]
    for _ in range(2):
        module.deploy()
        assert torch.equal(logits(model, tiny_inputs(name)), live)
    assert {n.split(".")[-1] for n, _ in module.named_parameters()} == {"delta"}
    assert module.up_parameters() == []


@pytest.mark.parametrize("target", MODES)
def test_the_file_holds_the_results_only(target: str, tmp_path: Path) -> None:
    model, hybrid = attached("gpt2", rank=3, target=target)
    expected = logits(model, tiny_inputs("gpt2"))
    hybrid.save(tmp_path)
    saved = {
        k: v for k, v in load_file(tmp_path / "weights.safetensors").items() if not k.startswith("head.")
    }
    assert all(key.endswith(".hiwi.delta") for key in saved)
    assert sum(v.numel() for v in saved.values()) == hybrid.counts().deployed
    assert torch.equal(logits(model, tiny_inputs("gpt2")), expected)  # saving left the adapters alone
    assert hybrid.modules["hiwi"].up_parameters() != []  # type: ignore[operator]
    fresh = tiny_model("gpt2")
    load(fresh, tmp_path)
    assert torch.equal(logits(fresh, tiny_inputs("gpt2")), expected)


def test_attaching_copies_nothing_of_the_backbone() -> None:
    model, hybrid = attached("gpt2", target="weight")
    child: Any = hybrid.modules["hiwi"].at["decoder-0-up"]  # type: ignore[index]
    assert child.original.data_ptr() == model.transformer.h[0].mlp.c_fc.weight.data_ptr()
    assert not child.original.requires_grad


def test_a_trained_adapter_that_never_saw_a_backbone_is_not_deployed() -> None:
    module, _ = build("hiwi", toy_spec())
    randomise(module)
    with pytest.raises(MethodError, match="attach"):
        module.deploy()


def test_backbones_without_biases_are_refused_with_a_way_out() -> None:
    method, spec = configured("hiwi"), toy_spec(bias=False)
    with pytest.raises(MethodError, match=r"none of its own at down, up.*target: weight"):
        method.parameter_count(sites_of(method, spec), spec)
    method = configured("hiwi", target="weight")
    assert method.parameter_count(sites_of(method, spec), spec).deployed == 2 * 2 * 6 * 10


def test_a_named_site_whose_bias_is_part_of_another_is_refused() -> None:
    method, spec = configured("hiwi", sites=("q", "up")), spec_of(tiny_config("gpt2"))
    with pytest.raises(MethodError, match="own at q; biases are at: down, o, qkv, up"):
        method.parameter_count(sites_of(method, spec), spec)


@pytest.mark.parametrize("target", MODES)
def test_keeps_the_dtype_of_the_backbone(target: str) -> None:
    module, _ = build("hiwi", toy_spec(), rank=2, target=target)
    randomise(module)
    half = torch.randn(10, 6).bfloat16() if target == "weight" else torch.randn(10).bfloat16()
    change = module.weight_targets()[0]
    module.initialise(change, half)
    live = module.weight(change, half, half)
    assert live.dtype == torch.bfloat16
    module.at["encoder-0-up"].deploy()
    assert torch.equal(module.weight(change, half, half), live)


def test_in_a_chain_it_comes_first_and_its_result_is_what_is_saved(tmp_path: Path) -> None:
    hiwi = {"hiwi": {"target": "weight", "sites": ["q"]}}
    with pytest.raises(CompositionError, match="put hiwi first"):
        attach(tiny_model("bert"), recipe({"chain": [{"dora": {"sites": ["q"]}}, hiwi]}))
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe({"chain": [hiwi, {"dora": {"sites": ["q"]}}]}), seed=0)
    randomise(hybrid.root, std=0.3)
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    hybrid.detach()
    load(model, tmp_path)
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-4)


def test_biases_that_are_all_zero_are_refused() -> None:
    model = tiny_model("bert")
    for name, parameter in model.named_parameters():
        if name.endswith("dense.bias"):
            torch.nn.init.zeros_(parameter)
    with pytest.raises(MethodError, match="all zero"):
        attach(model, recipe("hiwi"))
    torch.nn.init.ones_(model.get_parameter("bert.encoder.layer.2.output.dense.bias"))
    attach(model, recipe("hiwi")).detach()
