"""Site maps as data: where the sites of each model family are.

A map is a table of module paths. Paths of a layer's sites are relative to the layer; families whose stacks
differ (T5's decoder has cross-attention in between) have one `StackMap` each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autopeft.spec import StackName

__all__ = ["FAMILIES", "FamilyMap", "Linear", "Norm", "Region", "StackMap"]


@dataclass(frozen=True)
class Linear:
    """A linear map at `path`; of a fused projection, `part` of `parts` equal slices of its output.

    `instead` is where kin of the family have it (T5 v1.1's gated FFN has `wi_1` for `wi`).
    """

    path: str
    part: int = 0
    parts: int = 1
    instead: str | None = None


@dataclass(frozen=True)
class Norm:
    """A normalisation layer at `path`."""

    path: str


@dataclass(frozen=True)
class Region:
    """A sub-layer from the input of `entry` to the output of `exit`.

    `norm` is the norm before it (`pre`: its input is the residual stream) or after the residual add (`post`).
    `attends` marks attention that prefixes reach: `entry` is then the module that dispatches to an attention
    function, or one that `autopeft.injection.undispatched` has a forward for that does.
    """

    entry: str
    exit: str
    norm: str | None = None
    order: Literal["pre", "post"] | None = None
    attends: bool = False


@dataclass(frozen=True)
class StackMap:
    """One stack: `root` is the module whose forward takes the public inputs, `layers` its layer list.

    `embeddings` is `None` where the resolver does not know what a prompt could be put beside, `norm` is the
    norm behind the last layer, where the family has one and it is known.
    """

    name: StackName
    root: str
    layers: str
    sites: Mapping[str, Linear | Norm | Region]
    embeddings: str | None
    causal: bool = False
    norm: str | None = None


@dataclass(frozen=True)
class FamilyMap:
    """All stacks of a family, and what its inputs look like.

    Attributes:
        position_offset: first explicit position id (RoBERTa counts from `padding_idx + 1`).
        pooler: module that reads the first row, where the family has one.
        padding_id: the id of padding, where the family's code has one of its own in place of the config's.
    """

    stacks: tuple[StackMap, ...]
    modality: Literal["text", "vision"] = "text"
    position_offset: Literal["zero", "padding"] = "zero"
    pooler: str | None = None
    padding_id: int | None = None


_BERT_SITES: dict[str, Linear | Norm | Region] = {
    "layer": Region("", ""),
    "attention": Region(
        "attention.self", "attention.output.dropout", "attention.output.LayerNorm", "post", attends=True
    ),
    "q": Linear("attention.self.query"),
    "k": Linear("attention.self.key"),
    "v": Linear("attention.self.value"),
    "o": Linear("attention.output.dense"),
    "attention_norm": Norm("attention.output.LayerNorm"),
    "ffn": Region("intermediate", "output.dropout", "output.LayerNorm", "post"),
    "up": Linear("intermediate.dense"),
    "down": Linear("output.dense"),
    "ffn_norm": Norm("output.LayerNorm"),
}
_BERT_STACK = StackMap("encoder", "", "encoder.layer", _BERT_SITES, "embeddings.word_embeddings")

_DISTILBERT_SITES: dict[str, Linear | Norm | Region] = {
    "layer": Region("", ""),
    "attention": Region("attention", "attention.out_lin", "sa_layer_norm", "post", attends=True),
    "q": Linear("attention.q_lin"),
    "k": Linear("attention.k_lin"),
    "v": Linear("attention.v_lin"),
    "o": Linear("attention.out_lin"),
    "attention_norm": Norm("sa_layer_norm"),
    "ffn": Region("ffn", "ffn", "output_layer_norm", "post"),
    "up": Linear("ffn.lin1"),
    "down": Linear("ffn.lin2"),
    "ffn_norm": Norm("output_layer_norm"),
}

_MPNET_SITES: dict[str, Linear | Norm | Region] = {
    "layer": Region("", ""),
    "attention": Region("attention.attn", "attention.dropout", "attention.LayerNorm", "post", attends=True),
    "q": Linear("attention.attn.q"),
    "k": Linear("attention.attn.k"),
    "v": Linear("attention.attn.v"),
    "o": Linear("attention.attn.o"),
    "attention_norm": Norm("attention.LayerNorm"),
    "ffn": Region("intermediate", "output.dropout", "output.LayerNorm", "post"),
    "up": Linear("intermediate.dense"),
    "down": Linear("output.dense"),
    "ffn_norm": Norm("output.LayerNorm"),
}

_GPT2_SITES: dict[str, Linear | Norm | Region] = {
    "layer": Region("", ""),
    "attention": Region("attn", "attn.resid_dropout", "ln_1", "pre", attends=True),
    "q": Linear("attn.c_attn", 0, 3),
    "k": Linear("attn.c_attn", 1, 3),
    "v": Linear("attn.c_attn", 2, 3),
    "qkv": Linear("attn.c_attn"),
    "o": Linear("attn.c_proj"),
    "attention_norm": Norm("ln_1"),
    "ffn": Region("mlp", "mlp", "ln_2", "pre"),
    "up": Linear("mlp.c_fc"),
    "down": Linear("mlp.c_proj"),
    "ffn_norm": Norm("ln_2"),
}

_LLAMA_SITES: dict[str, Linear | Norm | Region] = {
    "layer": Region("", ""),
    "attention": Region("self_attn", "self_attn.o_proj", "input_layernorm", "pre", attends=True),
    "q": Linear("self_attn.q_proj"),
    "k": Linear("self_attn.k_proj"),
    "v": Linear("self_attn.v_proj"),
    "o": Linear("self_attn.o_proj"),
    "attention_norm": Norm("input_layernorm"),
    "ffn": Region("mlp", "mlp", "post_attention_layernorm", "pre"),
    "up": Linear("mlp.up_proj"),
    "gate_proj": Linear("mlp.gate_proj"),
    "down": Linear("mlp.down_proj"),
    "ffn_norm": Norm("post_attention_layernorm"),
}

_VIT_SITES: dict[str, Linear | Norm | Region] = {
    "layer": Region("", ""),
    "attention": Region("attention", "attention.o_proj", "layernorm_before", "pre", attends=True),
    "q": Linear("attention.q_proj"),
    "k": Linear("attention.k_proj"),
    "v": Linear("attention.v_proj"),
    "o": Linear("attention.o_proj"),
    "attention_norm": Norm("layernorm_before"),
    "ffn": Region("mlp", "mlp", "layernorm_after", "pre"),
    "up": Linear("mlp.fc1"),
    "down": Linear("mlp.fc2"),
    "ffn_norm": Norm("layernorm_after"),
}


def _t5_attention(prefix: str, module: str, names: tuple[str, str]) -> dict[str, Linear | Norm | Region]:
    region, dash = names
    inner = f"{prefix}.{module}"
    return {
        region: Region(inner, f"{prefix}.dropout", f"{prefix}.layer_norm", "pre", attends=True),
        **{f"{dash}{n}": Linear(f"{inner}.{n}") for n in ("q", "k", "v", "o")},
        f"{region}_norm": Norm(f"{prefix}.layer_norm"),
    }


def _t5_ffn(prefix: str) -> dict[str, Linear | Norm | Region]:
    inner = f"{prefix}.DenseReluDense"
    return {
        "ffn": Region(inner, f"{prefix}.dropout", f"{prefix}.layer_norm", "pre"),
        "up": Linear(f"{inner}.wi", instead=f"{inner}.wi_1"),
        "gate_proj": Linear(f"{inner}.wi_0"),
        "down": Linear(f"{inner}.wo"),
        "ffn_norm": Norm(f"{prefix}.layer_norm"),
    }


_T5 = FamilyMap(
    (
        StackMap(
            "encoder",
            "encoder",
            "encoder.block",
            {
                "layer": Region("", ""),
                **_t5_attention("layer.0", "SelfAttention", ("attention", "")),
                **_t5_ffn("layer.1"),
            },
            "encoder.embed_tokens",
            norm="encoder.final_layer_norm",
        ),
        StackMap(
            "decoder",
            "decoder",
            "decoder.block",
            {
                "layer": Region("", ""),
                **_t5_attention("layer.0", "SelfAttention", ("attention", "")),
                **_t5_attention("layer.1", "EncDecAttention", ("cross_attention", "cross_")),
                **_t5_ffn("layer.2"),
            },
            "decoder.embed_tokens",
            causal=True,
            norm="decoder.final_layer_norm",
        ),
    )
)


def _bart(order: Literal["pre", "post"], norm: str | None = None) -> FamilyMap:
    """Encoder and decoder of BART and its kin; `norm` is the one behind the layers of either stack."""

    def attention(module: str, norm: str, names: tuple[str, str]) -> dict[str, Linear | Norm | Region]:
        region, dash = names
        linears = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
        return {
            region: Region(module, f"{module}.out_proj", norm, order, attends=True),
            **{f"{dash}{site}": Linear(f"{module}.{path}") for site, path in linears.items()},
            f"{region}_norm": Norm(norm),
        }

    own = attention("self_attn", "self_attn_layer_norm", ("attention", ""))
    other = attention("encoder_attn", "encoder_attn_layer_norm", ("cross_attention", "cross_"))
    ffn: dict[str, Linear | Norm | Region] = {
        "ffn": Region("fc1", "fc2", "final_layer_norm", order),
        "up": Linear("fc1"),
        "down": Linear("fc2"),
        "ffn_norm": Norm("final_layer_norm"),
    }
    whole: dict[str, Linear | Norm | Region] = {"layer": Region("", "")}

    def stack(name: StackName, sites: Mapping[str, Linear | Norm | Region]) -> StackMap:
        last = None if norm is None else f"{name}.{norm}"
        layers, embeddings = f"{name}.layers", f"{name}.embed_tokens"
        return StackMap(name, name, layers, sites, embeddings, causal=name == "decoder", norm=last)

    return FamilyMap(
        (stack("encoder", {**whole, **own, **ffn}), stack("decoder", {**whole, **own, **other, **ffn}))
    )


_BERT = FamilyMap((_BERT_STACK,), pooler="pooler")
_ROBERTA = FamilyMap((_BERT_STACK,), position_offset="padding", pooler="pooler")
_LLAMA = FamilyMap(
    (StackMap("decoder", "", "layers", _LLAMA_SITES, "embed_tokens", causal=True, norm="norm"),)
)

FAMILIES: dict[str, FamilyMap] = {
    "bert": _BERT,
    "electra": FamilyMap((_BERT_STACK,)),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": FamilyMap(
        (StackMap("encoder", "", "transformer.layer", _DISTILBERT_SITES, "embeddings.word_embeddings"),)
    ),
    "mpnet": FamilyMap(
        (StackMap("encoder", "", "encoder.layer", _MPNET_SITES, "embeddings.word_embeddings"),),
        position_offset="padding",
        pooler="pooler",
        padding_id=1,
    ),
    "gpt2": FamilyMap((StackMap("decoder", "", "h", _GPT2_SITES, "wte", causal=True, norm="ln_f"),)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "t5": _T5,
    "mt5": _T5,
    "bart": _bart("post"),
    "mbart": _bart("pre", "layer_norm"),
    "vit": FamilyMap(
        (StackMap("encoder", "", "layers", _VIT_SITES, "embeddings", norm="layernorm"),),
        modality="vision",
        pooler="pooler",
    ),
}
