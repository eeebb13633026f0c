"""A hybrid in the format of Hugging Face peft, where that format can say it.

The folder holds `adapter_config.json` and `adapter_model.safetensors` and loads with
`peft.PeftModel.from_pretrained`; logits are equal, head included. The config names a base that peft's
`AutoPeftModel…` open, and `README.md` says what to type. It is written directly, so peft need not be
installed. What peft cannot say is refused with one sentence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save
from torch import Tensor

from autopeft.assets import MODEL_ALIASES, head_names, model_name
from autopeft.assets.heads import drawn
from autopeft.backbones import Place, base_model_of, spec_of_model
from autopeft.errors import AutoPEFTError
from autopeft.export.peft_readme import how_to_load
from autopeft.export.rope import rotate_keys
from autopeft.graph import Entry, unservable
from autopeft.hybrid.modules import deployed_modules, head_of
from autopeft.method import Call, Context, PeftKind
from autopeft.runs.files import write_atomic, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from autopeft.hybrid import Hybrid

__all__ = [
    "PEFT_PREFIX",
    "NotExpressible",
    "PeftAdapter",
    "base_prefix",
    "lora_config",
    "peft_adapter",
    "task_type_of",
    "to_peft",
    "with_head",
    "write_adapter",
]

_TASKS = (
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
)
PEFT_PREFIX = "base_model.model."


class NotExpressible(AutoPEFTError):  # noqa: N818
    """Hugging Face peft has no words for this hybrid; the message says why."""


@dataclass(frozen=True)
class PeftAdapter:
    """What the two files hold: `config` as JSON and `tensors` by peft's key."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Hybrid:
    """A live hybrid with its places by site key; `prefix` leads from the model to its base model."""

    live: Hybrid
    places: Mapping[str, Place]
    prefix: str

    def path(self, key: str) -> str:
        return self.prefix + self.places[key].exit


def to_peft(
    hybrid: Hybrid, folder: str | Path, *, base_model: str | None = None, task_type: str | None = None
) -> Path:
    """Write `hybrid` to `folder` in peft's format; returns the folder.

    Args:
        base_model: names the backbone in the config; default: what the model was loaded from, a folder by
            its absolute path.
        task_type: peft's word for the kind of task; default: by the model's class.

    Raises:
        NotExpressible: peft cannot say this hybrid.
        AutoPEFTError: the folder cannot be written.
    """
    return write_adapter(hybrid, peft_adapter(hybrid, task_type), folder, base_model=base_model)


def write_adapter(
    hybrid: Hybrid, adapter: PeftAdapter, folder: str | Path, *, base_model: str | None = None
) -> Path:
    """Write an adapter of the hybrid's backbone, and how it is loaded; see `to_peft`."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    loaded_from = str(getattr(hybrid.model.config, "_name_or_path", "") or "")
    known = model_name(loaded_from)
    name = base_model or (str(Path(loaded_from).resolve()) if known in MODEL_ALIASES else known) or None
    write_json(target / "adapter_config.json", {**adapter.config, "base_model_name_or_path": name})
    write_atomic(target / "adapter_model.safetensors", save(dict(adapter.tensors), metadata={"format": "pt"}))
    how = how_to_load(hybrid.model, adapter.config["task_type"], name, known)
    write_atomic(target / "README.md", how)
    return target


def peft_adapter(hybrid: Hybrid, task_type: str | None = None) -> PeftAdapter:
    """Config and tensors of `hybrid` in peft's words.

    Raises:
        NotExpressible: peft cannot say this hybrid.
    """
    model = hybrid.model
    why = unservable(hybrid.graph, "peft", head=bool(head_of(model)))
    if why is not None:
        raise NotExpressible(f"This hybrid cannot be said in peft's format: {why}.")
    entries = list(hybrid.graph.entries.values())
    kind: PeftKind = entries[0].method.peft.kind
    _, layout = spec_of_model(model)
    known = _Hybrid(hybrid, {p.site.key: p for p in layout.places()}, base_prefix(model))
    return with_head(model, *_WRITERS[kind](known, entries), task_type)


def with_head(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    task_type: str | None = None,
) -> PeftAdapter:
    """An adapter with the trained head of the model, a pooler that its checkpoint lacks, and what all configs
    say."""
    heads, poolers = _head_tensors(model), drawn(model)
    kept = [*(head_names(model) if heads else ()), *dict.fromkeys(n.rpartition(".")[0] for n in poolers)]
    heads |= {f"{PEFT_PREFIX}{name}": parameter for name, parameter in poolers.items()}
    common = {
        "task_type": task_type or task_type_of(model),
        "inference_mode": True,
        "modules_to_save": kept or None,
    }
    found = {key: t.detach().cpu().contiguous().clone() for key, t in {**tensors, **heads}.items()}
    return PeftAdapter({**config, **common}, found)


def base_prefix(model: PreTrainedModel) -> str:
    """What leads from a model to its base model, in front of the paths there."""
    return "" if base_model_of(model) is model else f"{model.base_model_prefix}."


def task_type_of(model: PreTrainedModel) -> str | None:
    """peft's word for the kind of task that a model of this class is for; `None`, which peft takes as well,
    where what it does for that kind hands the model arguments that it does not know."""
    name, known = type(model).__name__, inspect.signature(type(model).forward).parameters
    if model.main_input_name != "input_ids" or "inputs_embeds" not in known:
        return None
    return next((kind for end, kind in _TASKS if name.endswith(end)), "FEATURE_EXTRACTION")


def _head_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The trained head; a tied or frozen one (a language model's) is the backbone's and stays there."""
    return {
        f"{PEFT_PREFIX}{name}.{key}": parameter
        for name in head_names(model)
        for key, parameter in model.get_submodule(name).named_parameters()
        if parameter.requires_grad
    }


def _linear_places(known: _Hybrid, entries: list[Entry]) -> list[Place]:
    """The places of all entries, which must be whole modules stored in one way."""
    places = [known.places[site.key] for entry in entries for site in entry.sites]
    for place in places:
        if place.out_slice is not None:
            raise NotExpressible(
                f"{place.site.path} is a part of the fused projection {place.exit}, and Hugging Face peft "
                "adapts whole modules; put the method on a whole one ('qkv') instead."
            )
    if len({place.transposed for place in places}) > 1:
        raise NotExpressible("The sites mix both weight layouts, which one peft config cannot say.")
    return places


def _low_rank(
    known: _Hybrid, entries: list[Entry], *, dora: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """LoRA, DoRA and what is a LoRA once it is trained; ranks and scales that differ go into patterns by full
    module path. Sites that were left without a rank are left out."""
    places = _linear_places(known, entries)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    deployed: dict[str, Any] = deployed_modules(known.live.modules)
    for entry in entries:
        module = deployed[entry.name]
        for site in entry.sites:
            path = known.path(site.key)
            a, b, scale, *magnitudes = module.as_dora(site) if dora else module.as_lora(site)
            if not len(a):
                continue
            ranks[path] = len(a)
            alphas[path] = float(scale) * ranks[path]
            tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"] = a
            tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"] = b
            if dora:
                tensors[f"{PEFT_PREFIX}{path}.lora_magnitude_vector"] = magnitudes[0]
    if not ranks:
        raise NotExpressible("Training has left no rank anywhere, so that there is nothing to write.")
    dropout = max(float(getattr(e.method.config, "dropout", 0.0)) for e in entries)
    shared = {"lora_dropout": dropout, "use_dora": dora}
    return {**lora_config(ranks, alphas, transposed=places[0].transposed), **shared}, tensors


def lora_config(ranks: Mapping[str, int], alphas: Mapping[str, float], *, transposed: bool) -> dict[str, Any]:
    """peft's config of a LoRA with these ranks and α by full module path; the largest rank is its `r`.

    Args:
        transposed: whether the maps' weights are stored (in, out).
    """
    first = max(ranks, key=lambda path: ranks[path])
    rank, alpha = ranks[first], alphas[first]
    return {
        "peft_type": "LORA",
        "target_modules": list(ranks),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_exact(p): r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {_exact(p): a for p, a in alphas.items() if a != alpha},
        "lora_dropout": 0.0,
        "fan_in_fan_out": transposed,
        "use_dora": False,
        "use_rslora": False,
        "bias": "none",
    }


def _exact(path: str) -> str:
    """A module path as a pattern that matches it alone (peft reads patterns as regular expressions)."""
    return "^" + path.replace(".", r"\.")


def _ia3(known: _Hybrid, entries: list[Entry]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    places = _linear_places(known, entries)
    tensors: dict[str, Tensor] = {}
    inputs: list[str] = []
    for entry in entries:
        module = cast(Any, known.live.modules[entry.name])
        for site in entry.sites:
            path, factors = known.path(site.key), module.as_ia3(site)
            on_input = module.side(site) == "input"
            inputs += [path] if on_input else []
            tensors[f"{PEFT_PREFIX}{path}.ia3_l"] = factors[None, :] if on_input else factors[:, None]
    config = {
        "peft_type": "IA3",
        "target_modules": [known.path(p.site.key) for p in places],
        "feedforward_modules": inputs,
        "fan_in_fan_out": places[0].transposed,
    }
    return config, tensors


def _language_model(known: _Hybrid, method: str) -> PreTrainedModel:
    model = known.live.model
    if task_type_of(model) != "CAUSAL_LM":
        raise NotExpressible(
            f"Hugging Face peft's {method} counts its rows as text where {type(model).__name__} reads its "
            f"head, which this hybrid does not; it can be said for causal language models only."
        )
    return model


@torch.no_grad()
def _prompt(known: _Hybrid, entries: list[Entry]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = _language_model(known, "prompt tuning")
    if len(entries) > 1:
        raise NotExpressible(f"Hugging Face peft holds one prompt, but this hybrid has {len(entries)}.")
    entry = entries[0]
    module = cast(Any, known.live.modules[entry.name])
    was = module.training
    module.eval()
    rows = module.prompt(entry.sites[0], torch.empty(0), Call(Context()))[0]
    module.train(was)
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": int(rows.shape[0]),
        "token_dim": int(rows.shape[1]),
        **_decoder_shape(model),
    }
    return config, {"prompt_embeddings": rows}


@torch.no_grad()
def _prefix(known: _Hybrid, entries: list[Entry]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys and values, layer by layer; under RoPE the keys are turned to where peft reads them from."""
    model = _language_model(known, "prefix tuning")
    shape = _decoder_shape(model)
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    for entry in entries:
        module = known.live.modules[entry.name]
        was = module.training
        module.eval()
        for site in entry.sites:
            keys, values = cast(Any, module).key_value(site, torch.empty(0), Call(Context()))
            rows[int(site.layer or 0)] = (keys[0], values[0])
        module.train(was)
    lengths = {int(keys.shape[0]) for keys, _ in rows.values()}
    if len(lengths) > 1 or len(rows) != shape["num_layers"]:
        raise NotExpressible("Hugging Face peft's prefix has one length in all layers; this one has not.")
    heads = int(getattr(model.config, "num_key_value_heads", None) or shape["num_attention_heads"])
    length = lengths.pop()
    try:
        turned = {i: (rotate_keys(model, keys, heads, length), v) for i, (keys, v) in rows.items()}
    except ValueError as error:
        raise NotExpressible(str(error)) from error
    table = torch.cat([t for i in sorted(turned) for t in turned[i]], dim=-1)
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        **shape,
        "token_dim": int(rows[0][0].shape[-1]),
        "num_attention_heads": heads,
        "prefix_projection": False,
        "encoder_hidden_size": None,
    }
    return config, {"prompt_embeddings": table}


def _decoder_shape(model: PreTrainedModel) -> dict[str, int]:
    return {
        "num_layers": int(model.config.num_hidden_layers),
        "num_attention_heads": int(model.config.num_attention_heads),
        "num_transformer_submodules": 1,
    }


_Writer = Callable[[_Hybrid, list[Entry]], tuple[dict[str, Any], dict[str, Tensor]]]
_WRITERS: Mapping[PeftKind, _Writer] = {
    "lora": _low_rank,
    "dora": partial(_low_rank, dora=True),
    "ia3": _ia3,
    "prompt": _prompt,
    "prefix": _prefix,
}
