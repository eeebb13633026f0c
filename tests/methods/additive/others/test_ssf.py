from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from support.laws import normal, starts
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import CALL, build, counted, toy_spec, toy_specs
from torch import Tensor, nn
from transformers import (
    BertConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    LlamaConfig,
    PersimmonConfig,
    PreTrainedConfig,
    T5Config,
    ViTConfig,
)

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.method import WeightTarget, decay_targets
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec


def _recipe(*items: Any, at: Any = "all") -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "s", "layers": [{"at": at, "attach": list(items)}]})


def _count(config: PreTrainedConfig, item: Any = "ssf", at: Any = "all") -> int:
    return build_graph(_recipe(item, at=at), spec_of(config)).parameter_count().deployed


@settings(deadline=None)
@given(toy_specs)
def test_count_is_what_it_holds(spec: BackboneSpec) -> None:
    deployed, trained, held, held_trained = counted("ssf", spec)
    assert deployed == trained == held == held_trained
    assert deployed == sum(2 * s.out_features for s in spec.sites if s.kind in ("linear", "norm"))


def test_counts_of_the_paper() -> None:
    d, d_ff = 768, 3072
    vit = 12 * 2 * (7 * d + d_ff)
    assert _count(ViTConfig()) == vit + 2 * 2 * d == 205_824
    assert _count(ViTConfig(), {"ssf": {"outer": False}}) == vit
    assert _count(ViTConfig(), at="first 6") == vit // 2
    assert _count(BertConfig()) == vit + 2 * d  # the embeddings' norm; nothing comes behind the last layer
    assert _count(GPT2Config()) == vit + 2 * d  # of a fused projection q, k and v; the final norm


@pytest.mark.parametrize(
    ("config", "outside"),
    [
        (ViTConfig(num_hidden_layers=1), {"embeddings.patch_embeddings.projection", "layernorm"}),
        (BertConfig(num_hidden_layers=1), {"embeddings.LayerNorm"}),
        (LlamaConfig(num_hidden_layers=1, vocab_size=9), {"norm"}),
        (T5Config(num_layers=1), {"encoder.final_layer_norm", "decoder.final_layer_norm"}),
        # What pools, a module with a norm of its own, is left out.
        (tiny_config("siglip_vision_model"), {"embeddings.patch_embedding", "post_layernorm"}),
        (PersimmonConfig(num_hidden_layers=1, vocab_size=9), set()),  # no site map: its norms are not known
    ],
)
def test_the_whole_method_takes_in_what_lies_outside_of_the_layers(
    config: PreTrainedConfig, outside: set[str]
) -> None:
    spec = spec_of(config)

    def outer(item: Any) -> set[str]:
        entry = build_graph(_recipe(item), spec).entries["ssf"]
        targets = entry.method.build(entry.sites, spec).weight_targets()
        return {str(t.tensor).rpartition(".")[0] for t in targets}

    assert outer("ssf") == outside
    assert outer({"ssf": {"outer": False}}) == outer({"ssf": {"sites": ["down"]}}) == set()


def test_every_kind_of_operation_is_covered() -> None:
    model = tiny_model("t5")
    hybrid = attach(model, _recipe("ssf"))
    used = {s.name for s in hybrid.graph.sites() if s.stack == "decoder"}
    assert used == {*"qkvo", "up", "down", "attention_norm", "ffn_norm", "cross_attention_norm"} | {
        f"cross_{x}" for x in "qkvo"
    }


def test_scales_and_shifts_the_output_alone() -> None:
    module, sites = build("ssf", toy_spec())
    own = module[sites[0]]
    assert {module.side(s) for s in sites} == {"output"}
    x, y = torch.randn(2, 3, 6), torch.randn(2, 3, own.scale.numel())
    torch.testing.assert_close(y + module.delta(sites[0], x, y, CALL), own.scale * y + own.shift)
    nn.init.ones_(own.scale)
    nn.init.zeros_(own.shift)
    assert not module.delta(sites[0], x, y, CALL).any()


def test_scales_decay_towards_one_and_shifts_towards_zero() -> None:
    """Those outside of the layers too."""
    hybrid = attach(tiny_model("vit"), _recipe("ssf"))
    scales = [p for name, p in hybrid.root.named_parameters() if name.endswith("scale")]
    assert len(scales) == len(list(hybrid.root.parameters())) / 2
    assert decay_targets(hybrid.modules.values()) == {id(p): 1.0 for p in scales}


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "norm"])
def test_merged_equals_unmerged(kind: str) -> None:
    module, sites = build("ssf", toy_spec())
    randomise(module, std=0.5)
    site = next(s for s in sites if s.name == ("ffn_norm" if kind == "norm" else "up"))
    layer: Any = nn.LayerNorm(6) if kind == "norm" else nn.Linear(6, 10, bias="without" not in kind)
    randomise(layer, std=0.5)
    x = torch.randn(4, 6)
    expected = layer(x) + module.delta(site, x, layer(x), CALL)
    merged = [None if t is None else nn.Parameter(t) for t in module.merged(site, layer.weight, layer.bias)]
    layer.weight, layer.bias = merged
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


def _scaled(own: Any) -> Any:
    return lambda module, args, y: own.scale.view(-1, 1, 1) * y + own.shift.view(-1, 1, 1)


def test_outside_of_the_layers_weight_and_bias_give_what_the_features_would() -> None:
    """The patch embedding is scaled channel by channel, before positions are added; so is the final norm."""
    model, bare, inputs = tiny_model("vit"), tiny_model("vit"), tiny_inputs("vit")
    hybrid = attach(model, _recipe("ssf"), seed=0)
    module: Any = hybrid.modules["ssf"]
    with torch.no_grad():
        for own in module.children_by_site():
            own.scale.fill_(1.0)
            own.shift.zero_()
    randomise(module.outer, std=0.5)
    patches = module.outer["embeddings-patch_embeddings-projection"]
    final = module.outer["layernorm"]
    bare.vit.embeddings.patch_embeddings.projection.register_forward_hook(_scaled(patches))
    bare.vit.layernorm.register_forward_hook(lambda m, a, y: final.scale * y + final.shift)
    expected = logits(bare, inputs)
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits(tiny_model("vit"), inputs), atol=1e-2)


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3_text", "llama"])
def test_a_final_norm_yields_twice_as_much_at_a_scale_of_two_whatever_its_offset(name: str) -> None:
    """Gemma's norms scale by 1 + w: there γ·(1 + w), which has a gradient at w = 0 too."""
    model = tiny_model(name)
    norm = model.model.norm
    nn.init.zeros_(norm.weight)
    with torch.no_grad():
        norm.weight[1:] += torch.linspace(0.5, 1.5, len(norm.weight) - 1)
    x = torch.randn(1, 5, len(norm.weight))
    expected = norm(x)
    module: Any = attach(model, _recipe("ssf"), seed=0).modules["ssf"]
    nn.init.constant_(module.outer["norm"].scale, 2.0)
    y = norm(x)
    torch.testing.assert_close(y, 2 * expected)
    (gradient,) = torch.autograd.grad(y.square().sum(), module.outer["norm"].scale)
    assert bool(gradient[0]) == name.startswith("gemma")
    assert gradient[1:].all()


def test_a_final_norm_with_an_offset_is_merged_as_it_was() -> None:
    model, inputs = tiny_model("gemma"), tiny_inputs("gemma")
    hybrid = attach(model, _recipe("ssf"), seed=0)
    randomise(hybrid.root, std=0.3)
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=1e-4, rtol=1e-4)


def test_other_changes_of_a_tensor_are_added() -> None:
    spec = spec_of(BertConfig(num_hidden_layers=1, hidden_size=12, intermediate_size=4, vocab_size=9))
    entry = build_graph(_recipe("ssf"), spec).entries["ssf"]
    module: Any = entry.method.build(entry.sites, spec)
    gain, other = torch.randn(12), torch.randn(12)
    target = WeightTarget(tensor="embeddings.LayerNorm.weight")
    own = module.outer["embeddings-LayerNorm"]
    torch.testing.assert_close(module.weight(target, gain, gain + other), own.scale * gain + other)
    half = gain.to(torch.bfloat16)
    assert module.weight(target, half, half).dtype == torch.bfloat16


def _first_query(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    seen: list[Tensor] = []
    hook = model.bert.encoder.layer[0].attention.self.query.register_forward_hook(
        lambda m, a, y: seen.append(y.detach())
    )
    model(**inputs)
    hook.remove()
    return seen[0]


def test_in_a_chain_it_scales_what_lora_adds_too() -> None:
    inputs = tiny_inputs("bert")
    bare = _first_query(tiny_model("bert"), inputs)
    items: list[Any] = [{"lora": {"rank": 2, "sites": ["q"]}}, {"ssf": {"sites": ["q"]}}]
    for together in (False, True):
        model = tiny_model("bert")
        hybrid = attach(model, _recipe({"chain": items}) if together else _recipe(*items), seed=0)
        randomise(hybrid.root, std=0.3)
        site = hybrid.graph.sites()[0]
        lora: Any = hybrid.modules["lora"]
        own: Any = hybrid.modules["ssf"][site]  # type: ignore[index]
        embedded = model.bert.embeddings(inputs["input_ids"])
        added = lora.delta(site, embedded, bare, CALL)
        expected = (
            own.scale * (bare + added) + own.shift if together else own.scale * bare + added + own.shift
        )
        torch.testing.assert_close(_first_query(model, inputs), expected, atol=1e-5, rtol=1e-4)


def test_behind_a_gate_it_leaves_the_tensors_outside_alone() -> None:
    def gated(**config: Any) -> Recipe:
        return _recipe({"gate": [{"ssf": {"sites": ["q"], **config}}, {"lora": {"rank": 1}}]})

    model = tiny_model("bert")
    with pytest.raises(CompositionError, match="ssf alters weights"):
        attach(model, gated())
    assert attach(model, gated(outer=False)).graph.entries["ssf"].count.deployed == 3 * 2 * 32


def test_a_chain_of_two_is_one_also_outside_of_the_layers() -> None:
    """y'' = γ₂(γ₁y + β₁) + β₂ everywhere: γ = γ₂γ₁, β = γ₂β₁ + β₂."""
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, _recipe({"chain": ["ssf", {"ssf": {}, "as": "second"}]}), seed=0)
    randomise(hybrid.root, std=0.3)
    expected = logits(model, inputs)
    first, second = (dict(hybrid.modules[n].named_parameters()) for n in ("ssf", "second"))
    hybrid.detach()
    one = attach(model, _recipe("ssf"), seed=0)
    with torch.no_grad():
        for name, own in one.modules["ssf"].named_parameters():
            scale = second[name.replace(".shift", ".scale")]
            own.copy_(scale * first[name] + (second[name] if name.endswith("shift") else 0))
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-4)


def test_outside_of_the_layers_it_starts_as_inside() -> None:
    spec = spec_of(BertConfig(num_hidden_layers=1, hidden_size=4000, num_attention_heads=4, vocab_size=9))
    entry = build_graph(_recipe("ssf"), spec).entries["ssf"]
    torch.manual_seed(0)
    own: Any = entry.method.build(entry.sites, spec).outer["embeddings-LayerNorm"]
    assert starts(own, {"scale": normal(0.02, mean=1.0), "shift": normal(0.02)}) == []


def test_a_scale_of_one_leaves_a_gain_with_an_offset_as_it_is_in_16_bits() -> None:
    """Gemma's gains are stored less one, at which 16 bits tell steps of 0.008."""
    config = GemmaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = GemmaForCausalLM(config).bfloat16()
    randomise(model, std=0.02)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hybrid = attach(model, _recipe("ssf"), seed=0)
    with torch.no_grad():
        for name, parameter in hybrid.root.named_parameters():
            parameter.fill_(float(name.endswith("scale")))
    hybrid.merge()
    gains = [name for name in before if name.endswith("norm.weight")]
    assert len(gains) == 5
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
