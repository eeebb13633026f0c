"""Site maps of encoder-decoders of text, and of speech."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from autopeft.backbones.maps.records import FamilyMap, Linear, Norm, Region, Sites, StackMap
from autopeft.spec import StackName

__all__ = ["ENCODER_DECODERS"]


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
            distances=True,
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
            distances=True,
        ),
    ),
    endless=True,
)
_UMT5 = replace(
    _T5,
    stacks=tuple(
        replace(s, unplaced="counts distances in every layer anew, which such rows do not have")
        for s in _T5.stacks
    ),
)


def _bart(
    order: Literal["pre", "post"],
    norm: str | None = None,
    *,
    endless: bool = False,
    scaled: tuple[StackName, ...] = (),
) -> FamilyMap:
    """Encoder and decoder of BART and its kin; `norm` is the one behind the layers of either stack, `scaled`
    are those that multiply what they look up themselves."""

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
    ffn: Sites = {
        "ffn": Region("fc1", "fc2", "final_layer_norm", order),
        "up": Linear("fc1"),
        "down": Linear("fc2"),
        "ffn_norm": Norm("final_layer_norm"),
    }
    whole: Sites = {"layer": Region("", "")}

    def stack(name: StackName, sites: Sites) -> StackMap:
        last = None if norm is None else f"{name}.{norm}"
        layers, embeddings = f"{name}.layers", f"{name}.embed_tokens"
        causal, scales = name == "decoder", name in scaled
        return StackMap(name, name, layers, sites, embeddings, causal=causal, norm=last, scales=scales)

    return FamilyMap(
        (stack("encoder", {**whole, **own, **ffn}), stack("decoder", {**whole, **own, **other, **ffn})),
        endless=endless,
    )


def _whisper() -> FamilyMap:
    """BART's layers behind convolutions of a spectrogram: no module yields what a prompt could stand in."""
    encoder, decoder = _bart("pre", "layer_norm").stacks
    heard = replace(encoder, embeddings=None)
    return FamilyMap((heard, decoder), modality="audio", limit="max_target_positions")


ENCODER_DECODERS: Mapping[str, FamilyMap] = {
    "t5": _T5,
    "mt5": _T5,
    "umt5": _UMT5,
    "bart": _bart("post"),
    "mbart": _bart("pre", "layer_norm"),
    "pegasus": _bart("pre", "layer_norm", scaled=("encoder",)),
    "marian": _bart("post", scaled=("encoder",)),
    "m2m_100": _bart("pre", "layer_norm", endless=True),
    "blenderbot": _bart("pre", "layer_norm"),
    "whisper": _whisper(),
}
