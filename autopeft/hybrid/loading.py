"""A saved hybrid on a live model (see `autopeft.hybrid.store` for the files)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import spec_of_model
from autopeft.errors import DataError
from autopeft.hybrid.hybrid import Hybrid, attach
from autopeft.hybrid.labels import Labels
from autopeft.hybrid.modules import head_of
from autopeft.hybrid.store import RECIPE, WEIGHTS, check_size, saved_key, saved_shapes
from autopeft.recipe import Recipe

__all__ = ["load"]


def load(model: PreTrainedModel, folder: str | Path) -> Hybrid:
    """Attach a saved hybrid to a model of the same backbone, head included.

    The model's configuration gets the labels and the problem type that it had when the hybrid was saved, so
    that `predict` and a `pipeline` of transformers answer with them; `detach` gives it back its own.

    Raises:
        DataError: files are missing, damaged, or do not belong to this recipe and backbone, or the model has
        another number of labels. It is then unchanged. UsageError: the recipe does not fit the model.
    """
    path = Path(folder)
    missing = [n for n in (RECIPE, WEIGHTS) if not (path / n).is_file()]
    if missing:
        raise DataError(
            f"{path} holds no saved hybrid: {', '.join(missing)} is missing; name a folder that save() or "
            f"`autopeft export` wrote."
        )
    recipe = Recipe.from_file(path / RECIPE)
    spec, _ = spec_of_model(model)
    shapes = saved_shapes(path / WEIGHTS)
    check_size(recipe, spec, shapes, path)
    labels = Labels.saved(path) if head_of(model) else None
    if labels is not None:
        labels.check(model.config, path)
    hybrid = attach(model, recipe, seed=0)
    try:
        _fill(hybrid, path / WEIGHTS, shapes)
        if labels is not None:
            labels.put(model.config)
    except BaseException:
        hybrid.detach()
        raise
    return hybrid


def _resize(name: str, module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a module of data-dependent size the saved shapes, as far as they can be its own."""
    resize: Any = getattr(module, "resize", None)
    held = module.state_dict()
    saved = {k: shapes.get(saved_key(f"{name}.{k}"), ()) for k in held}
    if resize is not None and all(len(saved[k]) == held[k].ndim for k in held):
        resize(saved)


def _fill(hybrid: Hybrid, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    own: dict[str, Tensor] = {}
    for name, module in hybrid.modules.items():
        deploy: Any = getattr(module, "deploy", None)
        if deploy is not None:
            deploy()
        _resize(name, module, shapes)
        own.update({saved_key(f"{name}.{k}"): v for k, v in module.state_dict().items()})
    head = {f"head.{k}": p for k, p in hybrid.head().items()}
    targets: dict[str, Tensor] = {**own, **head}
    wrong = [
        f"{k}: {shapes.get(k, 'missing')} in the file, {tuple(targets[k].shape) if k in targets else 'not'} "
        f"in the model"
        for k in sorted(set(shapes) | set(targets))
        if k not in targets or shapes.get(k) != tuple(targets[k].shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise DataError(
            f"{file} does not fit this model: {'; '.join(wrong[:3])}{more}. Load it with the backbone and "
            f"number of labels it was saved with."
        )
    with safe_open(file, framework="pt") as handle, torch.no_grad():
        for key, target in own.items():
            target.copy_(handle.get_tensor(key))
        hybrid.refresh()  # refuses a damaged mask, while the model's head is still its own
        for key, parameter in head.items():
            parameter.copy_(handle.get_tensor(key))
    hybrid.prepared = True
