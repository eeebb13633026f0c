"""Site maps of encoder-decoders of text, and of speech."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from autopeft.backbones.maps.records import FamilyMap, Linear, Norm, Region, StackMap
from autopeft.spec import StackName

__all__ = ["ENCODER_DECODERS"]


def _t5(name: StackName) -> StackMap:
    """A stack of T5: its sub-layers are numbered, and the decoder's second one attends to the encoder."""
    attentions = [("attention", "SelfAttention", "")]
    if name == "decoder":
        attentions.append(("cross_attention", "EncDecAttention", "cross_"))
    sites: dict[str, Linear | Norm | Region] = {"layer": Region("", "")}
    for i, (region, module, dash) in enumerate(attentions):
        norm, inner = f"layer.{i}.layer_norm", f"layer.{i}.{module}"
        sites[region] = Region(inner, f"layer.{i}.dropout", norm, "pre", attends=True)
        sites |= {f"{dash}{n}": Linear(f"{inner}.{n}") for n in ("q", "k", "v", "o")}
        sites[f"{region}_norm"] = Norm(norm)
    last = f"layer.{len(attentions)}"
    inner = f"{last}.DenseReluDense"
    sites |= {
        "ffn": Region(inner, f"{last}.dropout", f"{last}.layer_norm", "pre"),
        "up": Linear(f"{inner}.wi", instead=f"{inner}.wi_1"),
        "gate_proj": Linear(f"{inner}.wi_0"),
        "down": Linear(f"{inner}.wo"),
        "ffn_norm": Norm(f"{last}.layer_norm"),
    }
    return StackMap(
        name,
        name,
        f"{name}.block",
        sites,
        f"{name}.embed_tokens",
        causal=name == "decoder",
        norm=f"{name}.final_layer_norm",
        distances=True,
    )


_T5 = FamilyMap((_t5("encoder"), _t5("decoder")), endless=True)
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
    own, other = ("attention", "self_attn", ""), ("cross_attention", "encoder_attn", "cross_")
    linears = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    attentions: dict[StackName, list[tuple[str, str, str]]] = {"encoder": [own], "decoder": [own, other]}
    stacks = []
    for name, regions in attentions.items():
        sites: dict[str, Linear | Norm | Region] = {"layer": Region("", "")}
        for region, module, dash in regions:
            before = f"{module}_layer_norm"
            sites[region] = Region(module, f"{module}.out_proj", before, order, attends=True)
            sites |= {f"{dash}{site}": Linear(f"{module}.{path}") for site, path in linears.items()}
            sites[f"{region}_norm"] = Norm(before)
        sites |= {
            "ffn": Region("fc1", "fc2", "final_layer_norm", order),
            "up": Linear("fc1"),
            "down": Linear("fc2"),
            "ffn_norm": Norm("final_layer_norm"),
        }
        stack = StackMap(
            name,
            name,
            f"{name}.layers",
            sites,
            f"{name}.embed_tokens",
            causal=name == "decoder",
            norm=None if norm is None else f"{name}.{norm}",
            scales=name in scaled,
        )
        stacks.append(stack)
    return FamilyMap(tuple(stacks), endless=endless)


# BART's layers behind convolutions of a spectrogram: no module yields what a prompt could stand in.
_HEARD, _SAID = _bart("pre", "layer_norm").stacks
_WHISPER = FamilyMap(
    (replace(_HEARD, embeddings=None), _SAID), modality="audio", limit="max_target_positions"
)

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
    "whisper": _WHISPER,
}
