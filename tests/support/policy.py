"""A tiny backbone with an adapter policy (`ipa`), and what that adds by transformers' own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from support.tiny import randomise, tiny_model

__all__ = ["SIZES", "added", "attached", "recipe"]

SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1}


def recipe(*others: Any, rate: float = 0.02, **options: Any) -> Recipe:
    training = {"learning_rate": rate, "warmup": 0.0}
    return Recipe.from_dict(
        {"name": "r", "model": [{"ipa": {**SIZES, **options}}, *others], "training": training}
    )


def attached(name: str = "llama", *others: Any, **options: Any) -> tuple[Any, Hybrid, Any]:
    model = tiny_model(name)
    hybrid = attach(model, recipe(*others, **options), seed=0)
    randomise(hybrid.root, std=0.3)
    return model, hybrid, hybrid.modules["ipa"]


def policy_of(module: Any) -> LlamaForCausalLM:
    """The same policy as a language model of transformers."""
    config = module.policy.decoder.config
    found = LlamaForCausalLM(config)
    found.model.load_state_dict(module.policy.decoder.state_dict())
    found.lm_head.weight = found.model.embed_tokens.weight
    return found.eval()


def added(module: Any, ids: Tensor, mask: Tensor | None = None, bins: Tensor | None = None) -> Tensor:
    """α·z_φ (rows, tokens, words) behind the control of each row, by transformers' own forward."""
    lm = policy_of(module)
    bins = torch.zeros(len(ids), dtype=torch.long) if bins is None else bins
    before = module.policy.controls[bins][:, None]
    embeds = torch.cat([before, lm.model.embed_tokens(ids)], dim=1)
    whole = torch.ones_like(ids) if mask is None else mask
    whole = F.pad(whole, (1, 0), value=1)
    places = (whole.cumsum(1) - 1).clamp(min=0)
    out = lm(inputs_embeds=embeds, attention_mask=whole, position_ids=places).logits
    return module.config.alpha * out[:, 1:]
