"""Outputs and gradients equal HF peft's on copied weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.tiny import randomise, tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.spec import Site

peft = pytest.importorskip("peft")

LENGTH = 4
LINEARS = {
    "bert": {
        "q": "attention.self.query",
        "v": "attention.self.value",
        "down": r"(?<!attention\.)output.dense",
    },
    "llama": {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"},
    "gpt2": {"qkv": "attn.c_attn", "down": "mlp.c_proj"},
}
SCALED = {
    "bert": {"k": "attention.self.key", "v": "attention.self.value", "down": r"(?<!attention\.)output.dense"},
    "llama": {"k": "self_attn.k_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"},
    "gpt2": {"qkv": "attn.c_attn", "down": "mlp.c_proj"},
}


@dataclass
class Pair:
    """The same model with our hybrid and with peft's adapter, and (ours, theirs) of every parameter."""

    ours: PreTrainedModel
    hybrid: Hybrid
    theirs: Any
    parameters: list[tuple[nn.Parameter, nn.Parameter]]


def _recipe(level: str, method: str, config: dict[str, Any]) -> Recipe:
    item = {method: config}
    body: Any = [{"at": "all", "attach": [item]}] if level == "layers" else [item]
    return Recipe.from_dict({"autopeft": 2, "name": method, level: body})


def _attached(name: str, level: str, method: str, config: dict[str, Any]) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, _recipe(level, method, config), seed=0)
    randomise(hybrid.root)
    return model, hybrid


def _layers(name: str, paths: dict[str, str]) -> str:
    """A pattern that peft matches against whole module names."""
    return rf".*\.\d+\.({'|'.join(p.replace('.dense', '[.]dense') for p in paths.values())})"


def _module_at(theirs: nn.Module, site: Site, paths: dict[str, str]) -> Any:
    path = paths[site.name].split(")")[-1]
    found = [
        m
        for n, m in theirs.named_modules()
        if n.endswith(f".{site.layer}.{path}") and hasattr(m, "base_layer")
    ]
    assert len(found) == 1
    return found[0]


def _copy(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours.view_as(theirs))


def _low_rank(name: str, *, dora: bool) -> Pair:
    paths = LINEARS[name]
    config = {"sites": list(paths), "rank": 3, "alpha": 12.0}
    ours, hybrid = _attached(name, "layers", "dora" if dora else "lora", config)
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=12,
        lora_dropout=0.0,
        use_dora=dora,
        target_modules=_layers(name, paths),
        fan_in_fan_out=name == "gpt2",
    )
    theirs = peft.get_peft_model(tiny_model(name), settings).eval()
    module: Any = next(iter(hybrid.modules.values()))
    pairs = []
    for site in next(iter(hybrid.graph.entries.values())).sites:
        layer = _module_at(theirs, site, paths)
        own = module[site]
        pairs += [(own.A, layer.lora_A["default"].weight), (own.B, layer.lora_B["default"].weight)]
        if dora:
            pairs.append((own.magnitude, layer.lora_magnitude_vector["default"].weight))
    return Pair(ours, hybrid, theirs, pairs)


def _ia3(name: str) -> Pair:
    paths = SCALED[name]
    ours, hybrid = _attached(name, "layers", "ia3", {"sites": list(paths)})
    settings = peft.IA3Config(
        target_modules=_layers(name, paths),
        feedforward_modules=_layers(name, {"down": paths["down"]}),
        fan_in_fan_out=name == "gpt2",
    )
    theirs = peft.get_peft_model(tiny_model(name), settings).eval()
    module: Any = next(iter(hybrid.modules.values()))
    sites = next(iter(hybrid.graph.entries.values())).sites
    pairs = [(module[s].factors, _module_at(theirs, s, paths).ia3_l["default"]) for s in sites]
    return Pair(ours, hybrid, theirs, pairs)


def _vera(name: str) -> Pair:
    """Sites of different widths share the largest pair; drawn from the same key it is peft's own."""
    paths = LINEARS[name]
    ours, hybrid = _attached(name, "layers", "vera", {"sites": list(paths), "rank": 6, "seed": 3})
    randomise(hybrid.root, std=0.5)
    settings = peft.VeraConfig(
        r=6,
        projection_prng_key=3,
        target_modules=_layers(name, paths),
        fan_in_fan_out=name == "gpt2",
    )
    theirs = peft.get_peft_model(tiny_model(name), settings).eval()
    module: Any = next(iter(hybrid.modules.values()))
    pairs = []
    for site in next(iter(hybrid.graph.entries.values())).sites:
        layer = _module_at(theirs, site, paths)
        assert torch.equal(layer.vera_A["default"], module.A)
        assert torch.equal(layer.vera_B["default"], module.B)
        own = module[site]
        pairs += [(own.d, layer.vera_lambda_d["default"]), (own.b, layer.vera_lambda_b["default"])]
    return Pair(ours, hybrid, theirs, pairs)


def _autolora(name: str) -> Pair:
    """What AutoLoRA's search ends with: LoRAs of the ranks that it has found, all with the same α."""
    paths = LINEARS[name]
    model = tiny_model(name)
    hybrid = attach(model, _recipe("layers", "autolora", {"sites": list(paths), "rank": 4, "alpha": 12.0}))
    module: Any = next(iter(hybrid.modules.values()))
    randomise(hybrid.root, std=1.0, seed=2)
    module.restart()
    randomise(hybrid.root)
    base, ranks = tiny_model(name), {}
    for site in next(iter(hybrid.graph.entries.values())).sites:
        path = paths[site.name].split(")")[-1]
        (full,) = [n for n, _ in base.named_modules() if n.endswith(f".{site.layer}.{path}")]
        ranks[full] = len(module[site].A)
    assert len(set(ranks.values())) > 1
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=0.0,
        target_modules=list(ranks),
        rank_pattern={f"^{n}": r for n, r in ranks.items()},
        fan_in_fan_out=name == "gpt2",
    )
    theirs = peft.get_peft_model(base, settings).eval()
    pairs = []
    for site in next(iter(hybrid.graph.entries.values())).sites:
        layer, own = _module_at(theirs, site, paths), module[site]
        pairs += [(own.A, layer.lora_A["default"].weight), (own.B, layer.lora_B["default"].weight)]
    return Pair(model, hybrid, theirs, pairs)


def _krona(name: str) -> Pair:
    """peft's LoKr with full factors (rank at least their size) and α = r is KronA with s = 1."""
    paths = LINEARS[name]
    ours, hybrid = _attached(name, "layers", "krona", {"sites": list(paths), "a1": 4, "a2": 4})
    settings = peft.LoKrConfig(r=64, alpha=64, decompose_factor=4, target_modules=_layers(name, paths))
    theirs = peft.get_peft_model(tiny_model(name), settings).eval()
    module: Any = next(iter(hybrid.modules.values()))
    pairs = []
    for site in next(iter(hybrid.graph.entries.values())).sites:
        layer, own = _module_at(theirs, site, paths), module[site]
        pairs += [(own.A, layer.lokr_w1["default"]), (own.B, layer.lokr_w2["default"])]
    return Pair(ours, hybrid, theirs, pairs)


def assert_same(pair: Pair, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    """Equal outputs and, of every copied parameter, equal gradients."""
    _copy(pair.parameters)
    a, b = ours(), theirs()
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(a.shape, generator=torch.Generator().manual_seed(7))
    (a * upstream).sum().backward()
    (b * upstream).sum().backward()
    for own, other in pair.parameters:
        assert own.grad is not None
        assert other.grad is not None
        scale = float(other.grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(own.grad, other.grad.view_as(own), atol=1e-5 * max(1.0, scale), rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_weights_and_scales(name: str, method: str) -> None:
    pair = _ia3(name) if method == "ia3" else _low_rank(name, dora=method == "dora")
    inputs = tiny_inputs(name, pad=2)
    bare = tiny_model(name)(**inputs).logits
    assert_same(pair, lambda: pair.ours(**inputs).logits, lambda: pair.theirs(**inputs).logits)
    assert not torch.allclose(pair.ours(**inputs).logits, bare, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_vera, "bert"),
        (_vera, "llama"),
        (_vera, "gpt2"),
        (_krona, "bert"),
        (_krona, "llama"),
        (_autolora, "bert"),
        (_autolora, "llama"),
        (_autolora, "gpt2"),
    ],
)
def test_shared_vectors_kronecker_products_and_found_ranks(make: Callable[[str], Pair], name: str) -> None:
    pair = make(name)
    inputs = tiny_inputs(name, pad=2)
    bare = tiny_model(name)(**inputs).logits
    assert_same(pair, lambda: pair.ours(**inputs).logits, lambda: pair.theirs(**inputs).logits)
    assert not torch.allclose(pair.ours(**inputs).logits, bare, atol=1e-2)


def _prompted(name: str, ours: PreTrainedModel, theirs_base: PreTrainedModel, task: str) -> Pair:
    hybrid = attach(ours, _recipe("model", "prompt_tuning", {"length": LENGTH}), seed=0)
    settings = peft.PromptTuningConfig(
        task_type=task,
        num_virtual_tokens=LENGTH,
        token_dim=32,
        num_layers=3,
        num_attention_heads=4,
        num_transformer_submodules=1,
    )
    theirs = peft.get_peft_model(theirs_base, settings).eval()
    module: Any = next(iter(hybrid.modules.values()))
    return Pair(ours, hybrid, theirs, [(module.table, theirs.prompt_encoder["default"].embedding.weight)])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompt_tuning_on_causal_models(name: str) -> None:
    inputs = tiny_inputs(name, pad=2)
    pair = _prompted(name, tiny_model(name), tiny_model(name), "CAUSAL_LM")
    assert_same(pair, lambda: pair.ours(**inputs).logits, lambda: pair.theirs(**inputs).logits[:, LENGTH:])
    assert not torch.allclose(pair.ours(**inputs).logits, tiny_model(name)(**inputs).logits, atol=1e-2)


def test_prompt_tuning_on_an_encoder() -> None:
    """Compared at the base model: peft's pooler would read the prompt's first row instead of [CLS]."""
    inputs = tiny_inputs("bert", pad=2)
    bases = [tiny_model("bert").base_model for _ in range(2)]
    pair = _prompted("bert", bases[0], bases[1], "FEATURE_EXTRACTION")
    real = inputs["attention_mask"][..., None]
    assert_same(
        pair,
        lambda: pair.ours(**inputs).last_hidden_state * real,
        lambda: pair.theirs(**inputs).last_hidden_state[:, LENGTH:] * real,
    )


@pytest.mark.parametrize(
    ("method", "name", "mid"),
    [
        ("prefix_tuning", "llama", None),
        ("prefix_tuning", "gpt2", None),
        ("prefix_tuning", "gpt2", 6),
        ("p_tuning_v2", "llama", None),
        ("p_tuning_v2", "gpt2", None),
        ("p_tuning_v2", "gpt2", 6),
    ],
)
def test_prefixes_on_causal_models(method: str, name: str, mid: int | None) -> None:
    """peft hands the prefix over as a cache, so its text starts at position `LENGTH`; ours starts at 0.

    Its MLP starts at the width of keys and values, ours at the model's: the same without grouped queries.
    """
    ours, hybrid = _attached(name, "layers", method, {"length": LENGTH, "reparameterization": mid})
    sites = next(iter(hybrid.graph.entries.values())).sites
    kv = sites[0].kv_features
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=LENGTH,
        num_layers=len(sites),
        token_dim=kv,
        num_attention_heads=kv // 8,
        prefix_projection=mid is not None,
        encoder_hidden_size=mid,
        num_transformer_submodules=1,
    )
    theirs = peft.get_peft_model(tiny_model(name), settings).eval()
    module: Any = next(iter(hybrid.modules.values()))
    whole, blocks = _prefix_pairs(module, theirs.prompt_encoder["default"], [module[s] for s in sites])
    with torch.no_grad():
        for own, other, part in blocks:
            other[part].copy_(own)
    inputs = tiny_inputs(name, pad=2)
    positions = torch.arange(LENGTH, LENGTH + inputs["input_ids"].shape[1])[None].expand(2, -1)
    assert_same(
        Pair(ours, hybrid, theirs, whole),
        lambda: ours(**inputs, position_ids=positions).logits,
        lambda: theirs(**inputs).logits,
    )
    for own, other, part in blocks:
        expected = other.grad[part]
        torch.testing.assert_close(own.grad, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def _prefix_pairs(
    module: Any, encoder: Any, rows: list[Any]
) -> tuple[list[tuple[nn.Parameter, nn.Parameter]], list[tuple[Any, Any, Any]]]:
    """(ours, theirs) of what both hold whole; (ours, theirs, part of theirs) of what ours holds in blocks."""
    first = rows[0].rows if rows[0].rows is not None else rows[0].up.bias
    width = first.shape[-1]
    parts = [slice(i * width, (i + 1) * width) for i in range(len(rows))]
    if rows[0].rows is not None:
        table = encoder.embedding.weight
        return [], [(r.rows, table, (slice(None), p)) for r, p in zip(rows, parts, strict=True)]
    mlp = next(iter(module.encoders.values()))
    start, _, out = encoder.transform
    whole = [(mlp.embedding, encoder.embedding.weight)]
    whole += [(mlp.down.weight, start.weight), (mlp.down.bias, start.bias)]
    blocks = [(r.up.weight, out.weight, p) for r, p in zip(rows, parts, strict=True)]
    return whole, blocks + [(r.up.bias, out.bias, p) for r, p in zip(rows, parts, strict=True)]
