"""BackboneSpec from a config alone, or from a live model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autopeft.assets import head_bank, head_names, quantization_of
from autopeft.assets.making import making_model
from autopeft.backbones.places import Layout, Place, base_model_of, layout_of
from autopeft.errors import SiteError
from autopeft.spec import BackboneSpec, LogitsSpec, Site, StackName, StackSpec, TensorRole, TensorSpec

__all__ = ["hidden_of_head", "on_meta", "projection_of", "spec_of", "spec_of_model"]

_BEHIND = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def spec_of(config: PreTrainedConfig, auto_class: Any = None) -> BackboneSpec:
    """Everything that checking and counting need, from a config: the base model is laid out on the meta
    device.

    No weights are read or allocated. Cached by the config's content.

    Args:
        config: of any supported family.
        auto_class: the transformers auto class that the model will be loaded with
            (`AutoModelForSequenceClassification`), since some of them leave the pooler away; default: the
            whole base model.

    Raises:
        SiteError: no site map fits the family.
        UsageError: the config makes no model.
    """
    text = config.to_json_string(use_diff=False)
    return _spec_of_json(config.model_type, text, auto_class)


@lru_cache(maxsize=64)
def _spec_of_json(model_type: str, text: str, auto_class: Any) -> BackboneSpec:
    values = json.loads(text)
    values.pop("model_type", None)
    with making_model(repr(model_type)):  # some classes check again what they are made with
        config = AutoConfig.for_model(model_type, **values)
    if auto_class is not None:  # whose model lacks a part of the whole base model
        base = base_model_of(on_meta(config, auto_class))
        return _cut(_spec_of_json(model_type, text, None), base, layout_of(base))
    base = on_meta(config, AutoModel)
    layout, config = layout_of(base), base.config
    words, family = config.get_text_config(), layout.family

    # The sliding window of some layers, as the config says, and as the library's caches read it.
    kinds = getattr(words, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    window = getattr(words, "sliding_window", None) if slides else None
    if getattr(words, "use_sliding_window", True) is False:
        window = None

    stacks = []
    for stack in layout.stacks:
        # Width of a head, as the attention of the first layer has it under one of the library's names.
        widths = {p.site.out_features for p in stack.places if p.site.name in ("k", "v")}
        found = (
            width
            for module in base.get_submodule(stack.layers[0]).modules()
            for name in ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim")
            if isinstance(width := getattr(module, name, None), int)
            and width > 0
            and widths
            and all(w % width == 0 for w in widths)
        )
        stacks.append(
            StackSpec(
                stack.map.name,
                len(stack.layers),
                stack.hidden,
                stack.map.causal,
                next(found, None),
                None if window is None else int(window),
                stack.runs,
                getattr(config, "word_embed_proj_dim", None),
            )
        )

    vision = family.modality == "vision"
    limit = None if vision or family.endless else getattr(config, family.limit, None)
    if limit is not None and family.position_offset == "padding":
        limit = int(limit) - (layout.padding_id(config) or 0) - 1
    writes = stacks[-1].causal and stacks[-1].name == "decoder"
    outputs = getattr(words, "vocab_size", None) if writes else None
    return BackboneSpec(
        family=config.model_type,
        stacks=tuple(stacks),
        sites=tuple(p.site for p in layout.places()),
        tensors=_tensors(base, layout),
        parameters=sum(p.numel() for p in base.parameters()),
        modality=family.modality,
        max_positions=None if limit is None else int(limit),
        prompt_side="right" if vision else "left",
        pooler=getattr(base, family.pooler or "", None) is not None,
        generic=layout.generic,
        logits=LogitsSpec(
            stacks[-1].states,
            int(outputs or config.num_labels or 0),
            tokens=writes,
            behind=_behind(config) if writes else "",
        ),
        lacks=family.lacks,
    )


def on_meta(config: PreTrainedConfig, auto_class: Any) -> PreTrainedModel:
    """The model that a configuration makes, without memory for its weights.

    Raises:
        UsageError: it makes none.
    """
    with torch.device("meta"), making_model(repr(config.model_type)):
        return cast(PreTrainedModel, auto_class.from_config(config))


def spec_of_model(model: PreTrainedModel) -> tuple[BackboneSpec, Layout]:
    """Spec and layout of a live model.

    Sites and tensors are those that the model has; `parameters`, of which a share is, those of the whole base
    model of its config.

    Raises:
        SiteError: no site map fits the family, or the model is quantised in such a way that its linear maps
            are not to be seen.
    """
    base = base_model_of(model)
    try:
        layout = layout_of(base)
    except SiteError as error:
        found = quantization_of(model)
        if found is None:
            raise
        raise SiteError(
            f"{type(model).__name__} is quantized ({found}) in such a way that no linear maps are found in "
            "it; load the backbone in bf16."
        ) from error
    spec = _cut(spec_of(model.config), base, layout)
    project = projection_of(model)
    if project is None:
        return replace(spec, logits=None), layout
    weight = cast(torch.Tensor, project.weight)
    width, hidden = weight.shape[::-1] if isinstance(project, Conv1D) else weight.shape
    words = model.get_output_embeddings() is not None
    logits = LogitsSpec(
        int(hidden),
        int(width),
        tokens=words,
        behind=_behind(model.config) if words else "",
        deep=bool(hidden_of_head(model)),
    )
    return replace(spec, logits=logits), layout


def projection_of(model: PreTrainedModel) -> nn.Module | None:
    """The linear map whose output are the model's logits: a language model's projection to its vocabulary, or
    the last one of a head; `None` where there is none, or one for each of several heads."""
    if head_bank(model) is not None:
        return None
    project = model.get_output_embeddings()
    if project is not None:
        return cast(nn.Module, project)
    for name in reversed(head_names(model) if base_model_of(model) is not model else ()):
        maps = [m for m in model.get_submodule(name).modules() if isinstance(m, (nn.Linear, Conv1D))]
        if maps:
            return maps[-1]
    return None


def hidden_of_head(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters of a task head's hidden layers by name: all that it has but its last linear map, which
    yields the logits. Empty where that map is the whole head, and on language models."""
    if model.get_output_embeddings() is not None:
        return {}
    project = projection_of(model)
    if project is None:
        return {}
    last = {id(p) for p in project.parameters()}
    return {
        f"{head}.{name}": p
        for head in head_names(model)
        for name, p in model.get_submodule(head).named_parameters()
        if id(p) not in last
    }


def _cut(spec: BackboneSpec, base: PreTrainedModel, layout: Layout) -> BackboneSpec:
    """The spec without what this base model lacks: a pooler, a decoder."""
    sites = {p.site.key for p in layout.places()}
    names = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    return replace(
        spec,
        stacks=tuple(s for s in spec.stacks if any(x.map.name == s.name for x in layout.stacks)),
        sites=tuple(s for s in spec.sites if s.key in sites),
        tensors=tuple(t for t in spec.tensors if t.name in names),
        pooler=getattr(base, layout.family.pooler or "", None) is not None,
    )


def _behind(config: PreTrainedConfig) -> str:
    """The option by which a language model caps or scales what its projection yields, where it does."""
    text = config.get_text_config()
    found = (name for name in _BEHIND if getattr(text, name, None) not in (None, 0, 1))
    return next(found, "")


def _tensors(base: PreTrainedModel, layout: Layout) -> tuple[TensorSpec, ...]:
    """The tensors that can be altered: not those that the family's code freezes (sinusoids), nor those that
    it reads past the module that owns them."""
    owners, parts = dict[str, Place](), dict[str, list[str]]()
    for place in layout.places():
        if place.site.kind in {"linear", "norm"} and place.out_slice is None:
            owners.setdefault(place.exit, place)
        elif place.site.kind == "linear":
            parts.setdefault(place.exit, []).append(place.site.name)
    # A norm behind the layers is of the same class as theirs.
    norms = (place for place in owners.values() if place.site.kind == "norm")
    offsets = {type(base.get_submodule(place.exit)): place.offset for place in norms}
    found = []
    for name, parameter in base.named_parameters(remove_duplicate=True):
        path, _, leaf = name.rpartition(".")
        # PyTorch's attention reads the parameters of its parts past them.
        around = base.get_submodule(path.rpartition(".")[0])
        past = name in layout.family.past or isinstance(around, nn.MultiheadAttention)
        if past or not parameter.requires_grad:
            continue
        owner = owners.get(path)
        site: Site | None = owner.site if owner is not None else None
        where = (site.stack, site.layer, site.name) if site is not None else _place_of(name, layout)
        module = base.get_submodule(path)
        role: TensorRole = "weight" if leaf == "weight" else "other"
        if isinstance(module, nn.Embedding):
            role = "embedding"
        elif "Norm" in type(module).__name__:
            role = "norm_bias" if leaf == "bias" else "norm_weight"
        # DeBERTa's attention adds vectors of its own to queries and values: `q_bias` and `v_bias`.
        elif leaf == "bias" or (leaf.endswith("_bias") and parameter.ndim == 1):
            role = "bias"
        offset = offsets.get(type(module), 0.0) if role == "norm_weight" else 0.0
        within = tuple(parts.get(path, ()))
        found.append(TensorSpec(name, tuple(parameter.shape), role, *where, parts=within, offset=offset))
    return tuple(found)


def _place_of(name: str, layout: Layout) -> tuple[StackName | None, int | None, str | None]:
    """Stack, layer and site of a tensor that no linear map and no norm of a layer owns."""
    if name.startswith(f"{layout.family.pooler or 'pooler'}."):
        return None, None, "pooler"
    for stack in layout.stacks:
        if stack.embeddings is not None and name.startswith(f"{stack.embeddings}."):
            return stack.map.name, None, "embeddings"
        for i, path in enumerate(stack.layers):
            if name.startswith(f"{path}."):
                return stack.map.name, i, None
        if not layout.generic and stack.embeds_at_root and name.startswith(f"{stack.map.root}."):
            behind = tuple(f"{module}." for module in (stack.map.norm, *stack.map.behind))
            return (None, None, None) if name.startswith(behind) else (stack.map.name, None, "embeddings")
    return None, None, None
