"""The generic resolver: finds the sites of a family that has no map, by the names its modules go by.

It looks for the list of layers and, inside a layer, for linear maps and norms under the names that model
code uses for them. What it cannot be sure of it leaves out (a method that needs such a site is then
refused, never misplaced).
"""

from __future__ import annotations

import inspect
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from autopeft.backbones.maps import FAMILIES, FamilyMap, Linear, Norm, Region, StackMap
from autopeft.errors import SiteError

__all__ = ["generic_map"]

_NAMES: dict[str, tuple[str, ...]] = {
    "q": ("q_proj", "query", "q_lin", "q", "query_proj"),
    "k": ("k_proj", "key", "k_lin", "k", "key_proj"),
    "v": ("v_proj", "value", "v_lin", "v", "value_proj"),
    "qkv": ("qkv", "query_key_value", "qkv_proj", "Wqkv"),
    "o": ("o_proj", "out_proj", "out_lin", "o", "c_proj", "dense"),
    "up": ("up_proj", "fc1", "lin1", "wi_1", "wi", "c_fc", "dense_h_to_4h", "ffn"),
    "gate_proj": ("gate_proj", "wi_0"),
    "down": ("down_proj", "fc2", "lin2", "wo", "dense_4h_to_h", "ffn_output"),
}
_EITHER = ("bert-generation",)  # its layers are an encoder's or a decoder's, as `is_decoder` says


def generic_map(base: PreTrainedModel) -> FamilyMap:
    """Read a site map off a base model of an unknown family.

    Raises:
        SiteError: the model is an encoder-decoder, has no list of layers, or no attention projections in it.
    """
    family = base.config.model_type
    known = ", ".join(sorted(FAMILIES))
    if getattr(base.config, "is_encoder_decoder", False):
        raise SiteError(
            f"There is no site map for the encoder-decoder family {family!r}; families with a map: {known}."
        )
    lists = [
        (name, m)
        for name, m in base.named_modules()
        if isinstance(m, nn.ModuleList)
        and len(m) > 0
        and len({type(x) for x in m}) == 1
        and _find(m[0], "q", "qkv")
    ]
    if not lists:
        raise SiteError(
            f"There is no site map for {family!r}, and no list of layers with attention projections under a "
            f"known name ({', '.join(_NAMES['q'])}, …) was found in {type(base).__name__}; families with a "
            f"map: {known}."
        )
    path, layers = min(lists, key=lambda item: item[0].count("."))
    hidden = getattr(base.config, "hidden_size", None)
    if getattr(base.config, "text_config", None) and getattr(base.config, "vision_config", None):
        raise SiteError(
            f"{type(base).__name__} is not one stack of layers but has a tower for texts and one for images; "
            f"load one of them by itself (of CLIP, CLIPVisionModel). Families with a map: {known}."
        )
    if hidden is None or _count(layers[0], "q", "qkv") > 1:
        raise SiteError(
            f"There is no site map for {family!r}, and {type(base).__name__} is not one stack of layers with "
            f"one attention each; families with a map: {known}."
        )
    vision = base.main_input_name != "input_ids"
    # Positions see none behind them where the config or a module says so, or where the library has the family
    # write text and fill no gaps in it.
    writes = family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = (
        getattr(base.config, "is_decoder", False) is True
        or any(getattr(m, "is_causal", False) is True for m in layers[0].modules())
        or (writes and family not in _EITHER)
    )
    table = None
    if not vision:
        embeddings = base.get_input_embeddings()
        table = next((n for n, m in base.named_modules() if m is embeddings), None)
        if table is None:
            raise SiteError(
                f"{type(base).__name__} of the family {family!r} has no input embeddings in the base model."
            )
    stack = StackMap(
        "decoder" if causal else "encoder",
        "",
        path,
        _sites(layers[0], int(hidden)),
        table,
        causal=causal,
    )
    from_padding = any(
        isinstance(m, nn.Embedding) and m.padding_idx is not None and name.endswith("position_embeddings")
        for name, m in base.named_modules()
    )
    return FamilyMap(
        (stack,),
        modality="vision" if vision else "text",
        position_offset="padding" if from_padding else "zero",
    )


def _paths(layer: nn.Module, name: str) -> list[str]:
    """Linear maps that go by `name`; an expert sees some of the tokens only, so that it is no layer's FFN."""
    return [
        path
        for path, module in layer.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and path.rsplit(".", 1)[-1] == name
        and "expert" not in path
    ]


def _find(layer: nn.Module, *sites: str) -> str | None:
    for site in sites:
        for name in _NAMES[site]:
            paths = _paths(layer, name)
            if paths:
                return paths[0]
    return None


def _count(layer: nn.Module, *sites: str) -> int:
    """How many maps go by the name that `_find` finds."""
    path = _find(layer, *sites)
    return 0 if path is None else len(_paths(layer, path.rsplit(".", 1)[-1]))


def _shape(layer: nn.Module, path: str) -> tuple[int, int]:
    """(in, out) of a linear map."""
    module = layer.get_submodule(path)
    rows, columns = cast(Tensor, module.weight).shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _spans(layer: nn.Module, first: str, last: str, hidden: int) -> bool:
    """Whether a sub-layer from one map to another reads and yields the width of the stack."""
    return _shape(layer, first)[0] == hidden and _shape(layer, last)[1] == hidden


def _sites(layer: nn.Module, hidden: int) -> dict[str, Linear | Norm | Region]:
    # A layer is more than an attention: XLM has lists of attentions and of FFNs side by side.
    normed = any(type(m).__name__.endswith(("Norm", "LayerNorm")) for m in layer.modules())
    whole_layer = normed or _find(layer, "up", "down") is not None
    sites: dict[str, Linear | Norm | Region] = {"layer": Region("", "")} if whole_layer else {}
    found = {site: path for site in _NAMES if (path := _find(layer, site)) is not None}
    for site in ("up", "gate_proj", "down"):
        if _count(layer, site) > 1:
            del found[site]
    projection = found.get("q") or found.get("qkv")
    if projection is not None and "." in projection:
        inside = projection.rsplit(".", 1)[0]
        output = found.get("o")
        # Its forward hands on keyword arguments and calls transformers' attention interface.
        source = inspect.getsource(type(layer.get_submodule(inside)))
        attends = "ALL_ATTENTION_FUNCTIONS" in source and "**kwargs" in source
        if output is None or output.split(".")[0] != inside.split(".")[0]:
            found.pop("o", None)
        elif _spans(layer, projection, output, hidden):
            sites["attention"] = Region(inside, output, attends=attends)
    up, down = found.get("up"), found.get("down")
    if up is not None and down is not None and _spans(layer, up, down, hidden):
        inside = up.rpartition(".")[0]
        own = "" != inside == down.rpartition(".")[0] and not str(projection).startswith(f"{inside}.")
        # MPT's FFN takes more than the states: what its output is added to.
        module = layer.get_submodule(inside)
        more = list(inspect.signature(module.forward).parameters.values())[1:] if own else []
        adds = any(p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD for p in more)
        sites["ffn"] = Region(inside, inside) if own and not adds else Region(up, down)
    sites.update({site: Linear(path) for site, path in found.items()})
    return sites
