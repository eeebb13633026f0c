"""One small recipe for each way to use each method; what holds for all of them is tested over this table."""

from __future__ import annotations

from typing import Any

from autopeft.recipe import Recipe

__all__ = ["CASES", "recipe_of"]

# name → (level, item); every registered method that places something has at least one row.
CASES: dict[str, tuple[str, Any]] = {
    "lora": ("layers", {"lora": {"rank": 3}}),
    "lora-all": ("layers", {"lora": {"rank": 2, "sites": ["q", "k", "v", "o", "up", "down"]}}),
    "dora": ("layers", {"dora": {"rank": 3}}),
    "ia3": ("layers", "ia3"),
    "serial-pfeiffer": ("layers", {"serial_adapter": {"bottleneck": 4, "variant": "pfeiffer"}}),
    "serial-houlsby": ("layers", {"serial_adapter": {"bottleneck": 4, "variant": "houlsby"}}),
    "parallel": ("layers", {"parallel_adapter": {"bottleneck": 4}}),
    "parallel-attention": ("layers", {"parallel_adapter": {"bottleneck": 4, "sites": ["attention"]}}),
    "prefix": ("layers", {"prefix_tuning": {"length": 3}}),
    "prefix-mlp": ("layers", {"prefix_tuning": {"length": 3, "reparameterization": 8}}),
    "prompt": ("model", {"prompt_tuning": {"length": 4}}),
    "bitfit": ("model", "bitfit"),
    "fish": ("model", {"fish_mask": {"keep": "2%", "samples": 4}}),
    "gate": (
        "layers",
        {
            "gate": [
                {"lora": {"rank": 2}},
                {"prefix_tuning": {"length": 2}},
                {"serial_adapter": {"bottleneck": 12}},
            ]
        },
    ),
    "chain": (
        "layers",
        {"chain": [{"serial_adapter": {"bottleneck": 12}}, {"parallel_adapter": {"bottleneck": 12}}]},
    ),
}


def recipe_of(case: str) -> Recipe:
    level, item = CASES[case]
    body: dict[str, Any] = {"autopeft": 1, "name": case}
    body[level] = [{"at": "all", "attach": [item]}] if level == "layers" else [item]
    return Recipe.from_dict(body)
