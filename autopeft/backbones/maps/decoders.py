"""Site maps of decoders of text.

Where a map depends on the configuration (which norms there are, how a fused projection is divided), a
function of it makes the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from autopeft.backbones.maps.records import (
    FamilyMap,
    Linear,
    MapOf,
    Norm,
    Region,
    Sites,
    Slice,
    StackMap,
)
from autopeft.errors import SiteError

__all__ = ["DECODERS"]

_EXPERTS = (
    "Its FFN is a mixture of experts, whose weights are one tensor of three dimensions that sees some of the "
    "tokens each; take the region 'ffn'."
)
_LACKS = dict.fromkeys(("up", "gate_proj", "down"), _EXPERTS)
_ALIBI = "counts distances to positions in its scores (alibi), which such rows do not have"


def _decoder(
    attention: Region,
    maps: Sites,
    ffn: Region,
    ffn_maps: Sites,
    norms: Sequence[str],
    offset: float = 0.0,
    *,
    root: str = "",
    layers: str = "layers",
    embeddings: str = "embed_tokens",
    norm: str = "norm",
    lacks: Mapping[str, str] | None = None,
    **options: Any,
) -> FamilyMap:
    """A family of one decoder by the sites of its layers; with one norm in `norms`, both sub-layers read what
    it yields and stand side by side."""
    first, *second = (Norm(path, offset) for path in norms)
    sites = {"layer": Region("", ""), "attention": attention, **maps, "attention_norm": first}
    sites |= {"ffn": ffn, **ffn_maps, **({"ffn_norm": second[0]} if second else {})}
    stack = StackMap("decoder", root, layers, sites, embeddings, causal=True, norm=norm, **options)
    return FamilyMap((stack,), lacks=lacks or {})


def _separate(inside: str, o: str) -> Sites:
    """Queries, keys and values of maps of their own."""
    return {**{site: Linear(f"{inside}.{site}_proj") for site in "qkv"}, "o": Linear(f"{inside}.{o}")}


def _fused(path: str, o: str, features: Sequence[Slice]) -> Sites:
    """Queries, keys and values of one map, and which of its features each has."""
    parts = {site: Linear(path, features=own) for site, own in zip("qkv", features, strict=True)}
    return {**parts, "qkv": Linear(path), "o": Linear(o)}


def _in_turn(queries: int, keys: int) -> list[Slice]:
    """All queries, then all keys, then all values."""
    return [Slice(0, queries), Slice(queries, keys), Slice(queries + keys, keys)]


def _by_group(groups: int, queries: int, keys: int) -> list[Slice]:
    """Queries, keys and values of one group of heads after another."""
    return [replace(own, groups=groups) for own in _in_turn(queries, keys)]


def _heads(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Heads, heads of keys and values, and their width."""
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)


def _ffn(up: str, down: str, gate: str | None = None) -> Sites:
    return {"up": Linear(up), **({} if gate is None else {"gate_proj": Linear(gate)}), "down": Linear(down)}


_GATED = _ffn("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj")
_ONE_MORE = 1.0  # Gemma's norms scale by 1 + w
_TWO = ("input_layernorm", "post_attention_layernorm")

_GPT2 = _decoder(
    Region("attn", "attn.resid_dropout", "ln_1", "pre", attends=True),
    {
        **{site: Linear("attn.c_attn", part, 3) for part, site in enumerate("qkv")},
        "qkv": Linear("attn.c_attn"),
        "o": Linear("attn.c_proj"),
    },
    Region("mlp", "mlp", "ln_2", "pre"),
    _ffn("mlp.c_fc", "mlp.c_proj"),
    ("ln_1", "ln_2"),
    layers="h",
    embeddings="wte",
    norm="ln_f",
)


def _llama(ffn: Sites = _GATED, multiplier: float = 1.0, offset: float = 0.0, **options: Any) -> FamilyMap:
    first, second = _TWO
    return _decoder(
        Region("self_attn", "self_attn.o_proj", first, "pre", attends=True, multiplier=multiplier),
        _separate("self_attn", "o_proj"),
        Region("mlp", "mlp", second, "pre", multiplier=multiplier),
        ffn,
        _TWO,
        offset,
        **options,
    )


# A norm in front of each sub-layer, and one behind it whose output is what the residual gets.
_GEMMA2 = _decoder(
    Region("self_attn", "post_attention_layernorm", "input_layernorm", "pre", attends=True),
    _separate("self_attn", "o_proj"),
    Region("mlp", "post_feedforward_layernorm", "pre_feedforward_layernorm", "pre"),
    _GATED,
    ("input_layernorm", "pre_feedforward_layernorm"),
    _ONE_MORE,
)

# Sub-layers read the residual stream itself; the norm behind each is a part of it.
_OLMO2 = _decoder(
    Region("self_attn", "post_attention_layernorm", None, "post", attends=True),
    _separate("self_attn", "o_proj"),
    Region("mlp", "post_feedforward_layernorm", None, "post"),
    _GATED,
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)

_PHI = _decoder(
    Region("self_attn", "self_attn.dense", "input_layernorm", "pre", attends=True),
    _separate("self_attn", "dense"),
    Region("mlp", "mlp", "input_layernorm", "pre"),
    _ffn("mlp.fc1", "mlp.fc2"),
    ("input_layernorm",),
    norm="final_layernorm",
)
_COHERE = _decoder(
    Region("self_attn", "self_attn.o_proj", "input_layernorm", "pre", attends=True),
    _separate("self_attn", "o_proj"),
    Region("mlp", "mlp", "input_layernorm", "pre"),
    _GATED,
    ("input_layernorm",),
)
_GPTJ = _decoder(
    Region("attn", "attn.resid_dropout", "ln_1", "pre", attends=True),
    _separate("attn", "out_proj"),
    Region("mlp", "mlp", "ln_1", "pre"),
    _ffn("mlp.fc_in", "mlp.fc_out"),
    ("ln_1",),
    layers="h",
    embeddings="wte",
    norm="ln_f",
    sine_first=True,
)


def _phi3(config: PreTrainedConfig) -> FamilyMap:
    heads, key_heads, width = _heads(config)
    first, second = _TWO
    path, up = "self_attn.qkv_proj", "mlp.gate_up_proj"
    return _decoder(
        Region("self_attn", "resid_attn_dropout", first, "pre", attends=True),
        _fused(path, "self_attn.o_proj", _in_turn(heads * width, key_heads * width)),
        Region("mlp", "resid_mlp_dropout", second, "pre"),
        {"up": Linear(up, 1, 2), "gate_proj": Linear(up, 0, 2), "down": Linear("mlp.down_proj")},
        _TWO,
    )


def _gpt_neox(config: PreTrainedConfig) -> FamilyMap:
    """Each sub-layer has a norm of its own, whether they stand side by side or not."""
    heads, _, width = _heads(config)
    first, second = _TWO
    return _decoder(
        Region("attention", "post_attention_dropout", first, "pre", attends=True),
        _fused("attention.query_key_value", "attention.dense", _by_group(heads, width, width)),
        Region("mlp", "post_mlp_dropout", second, "pre"),
        _ffn("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        _TWO,
        embeddings="embed_in",
        norm="final_layer_norm",
    )


def _opt(config: PreTrainedConfig) -> FamilyMap:
    """Its language model calls the decoder inside of the base model by itself."""
    order: Any = "pre" if config.do_layer_norm_before else "post"
    first, second = "self_attn_layer_norm", "final_layer_norm"
    return _decoder(
        Region("self_attn", "self_attn.out_proj", first, order, attends=True),
        _separate("self_attn", "out_proj"),
        Region("fc1", "fc2", second, order, flat=True),
        _ffn("fc1", "fc2"),
        (first, second),
        root="decoder",
        layers="decoder.layers",
        embeddings="decoder.embed_tokens",
        norm="decoder.final_layer_norm",
        behind=("decoder.project_out",),
    )


def _falcon(config: PreTrainedConfig) -> FamilyMap:
    """Three ways to divide the fused projection, and as many to place the norms. With alibi, distances are
    in its mask, where the keys of a prefix have none."""
    heads, _, width = _heads(config)
    modern = bool(config.new_decoder_architecture)
    if modern:
        groups = int(config.num_kv_heads)
        features = _by_group(groups, heads // groups * width, width)
    else:
        features = _in_turn(heads * width, width) if config.multi_query else _by_group(heads, width, width)
    norms = _TWO[:1] if config.parallel_attn else _TWO
    if modern and config.num_ln_in_parallel_attn in (None, 2):
        norms = ("ln_attn", "ln_mlp")
    return _decoder(
        Region("self_attention", "self_attention.dense", norms[0], "pre", attends=not config.alibi),
        _fused("self_attention.query_key_value", "self_attention.dense", features),
        Region("mlp", "mlp", norms[-1], "pre"),
        _ffn("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        norms,
        layers="h",
        embeddings="word_embeddings",
        norm="ln_f",
        unplaced=_ALIBI if config.alibi else "",
    )


def _bloom(config: PreTrainedConfig) -> FamilyMap:
    """Sub-layers add the residual themselves, so that a region ends with its last map.

    Raises:
        SiteError: they compute past their own maps.
    """
    if config.slow_but_exact and config.pretraining_tp > 1:
        raise SiteError("BLOOM with `slow_but_exact` computes past its linear maps; set it to false.")
    heads, _, width = _heads(config)
    # Where it is taken behind the norm, the residual is no stream that goes through the layers.
    order: Any = None if config.apply_residual_connection_post_layernorm else "pre"
    first, second = _TWO
    return _decoder(
        Region("self_attention", "self_attention.dense", first, order, attends=True),
        _fused("self_attention.query_key_value", "self_attention.dense", _by_group(heads, width, width)),
        Region("mlp", "mlp.dense_4h_to_h", second, order),
        _ffn("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        _TWO,
        layers="h",
        embeddings="word_embeddings",
        norm="ln_f",
        unplaced=_ALIBI,
    )


def _stablelm(config: PreTrainedConfig) -> FamilyMap:
    return _COHERE if config.use_parallel_residual else _llama()


def _granite(config: PreTrainedConfig) -> FamilyMap:
    return _llama(multiplier=float(config.residual_multiplier))


DECODERS: Mapping[str, FamilyMap | MapOf] = {
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _llama()),
    "gemma": _llama(offset=_ONE_MORE),
    **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss"), _llama(lacks=_LACKS)),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA2),
    "starcoder2": _llama(_ffn("mlp.c_fc", "mlp.c_proj")),
    "olmo2": _OLMO2,
    "phi": _PHI,
    "cohere": _COHERE,
    "gptj": _GPTJ,
    "phi3": _phi3,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "falcon": _falcon,
    "bloom": _bloom,
    "stablelm": _stablelm,
    "granite": _granite,
}
