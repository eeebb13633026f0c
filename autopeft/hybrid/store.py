"""Hybrids on disk: `recipe.yaml`, `weights.safetensors` and `hybrid.json` in one folder.

Weights are saved in deployed form (a prefix without its MLP) under
`<stack>.<layer>.<site>.<name>.<parameter>`, or `model.<name>.<parameter>` for what belongs to no single
site; the head's under `head.<parameter name>`. Folders come from strangers: sizes are compared with what
the recipe says before anything is allocated.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import spec_of_model
from autopeft.errors import DataError
from autopeft.graph import build_graph
from autopeft.hybrid.hybrid import Hybrid, attach, deployed_form
from autopeft.recipe import Recipe

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec

__all__ = ["MANIFEST", "RECIPE", "WEIGHTS", "deployed_state", "load", "save"]

RECIPE, WEIGHTS, MANIFEST = "recipe.yaml", "weights.safetensors", "hybrid.json"
_FORMAT = 1
_SCAFFOLDING = 50_000_000  # parameters of reparameterisations that loading may allocate for a moment
_SITE = re.compile(r"^(?P<name>[^.]+)\.(?P<front>(?:.*\.)?)at\.(?P<site>[^.]+)\.(?P<rest>.+)$")


def saved_key(key: str) -> str:
    """The saved name of a key of the root's state dict (`lora.at.encoder-0-q.A` → `encoder.0.q.lora.A`)."""
    match = _SITE.match(key)
    if match is None:
        return f"model.{key}"
    front = match["front"]
    return f"{match['site'].replace('-', '.')}.{match['name']}.{front}{match['rest']}"


def deployed_state(hybrid: Hybrid) -> dict[str, Tensor]:
    """All tensors that inference needs, head included, on the CPU, by saved name. The hybrid itself is not
    changed."""
    state: dict[str, Tensor] = {}
    for name, module in hybrid.modules.items():
        for key, value in deployed_form(module).state_dict().items():
            state[saved_key(f"{name}.{key}")] = value.detach().cpu().contiguous().clone()
    for name, parameter in hybrid.head().items():
        state[f"head.{name}"] = parameter.detach().cpu().contiguous().clone()
    return state


def save(hybrid: Hybrid, folder: str | Path) -> Path:
    """Write a hybrid into `folder` (made if needed); each file appears whole or not at all."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = deployed_state(hybrid)
    manifest = {
        "format": _FORMAT,
        "family": hybrid.spec.family,
        "backbone_parameters": hybrid.spec.parameters,
        "structure": hybrid.graph.hash(),
        "counts": hybrid.counts().to_dict(),
    }
    with tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as hidden:
        temporary = Path(hidden)
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / RECIPE).write_text(hybrid.recipe.to_yaml(), encoding="utf-8")
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for name in (WEIGHTS, RECIPE, MANIFEST):
            os.replace(temporary / name, path / name)
    return path


def load(model: PreTrainedModel, folder: str | Path) -> Hybrid:
    """Attach a saved hybrid to a model of the same backbone, head included.

    Raises:
        DataError: files are missing, damaged, or do not belong to this recipe and backbone. The model is
        then unchanged. UsageError: the recipe does not fit the model.
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
    shapes = _shapes(path / WEIGHTS)
    _check_size(recipe, spec, shapes, path)
    hybrid = attach(model, recipe, seed=0)
    try:
        _fill(hybrid, path / WEIGHTS, shapes)
    except BaseException:
        hybrid.detach()
        raise
    return hybrid


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as handle:
            return {k: tuple(handle.get_slice(k).get_shape()) for k in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is not a readable safetensors file: {error}") from error


def _check_size(
    recipe: Recipe, spec: BackboneSpec, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Compare the recipe's closed-form count with what the file holds, before modules are allocated."""
    graph = build_graph(recipe, spec)
    counted = graph.parameter_count()
    # Of what training may have pruned nothing need be in the file.
    pruned = sum(e.count.deployed for e in graph.entries.values() if e.traits.data_dependent)
    deployed = counted.deployed - pruned
    thrown_away = counted.trained - deployed
    if thrown_away > max(spec.parameters, _SCAFFOLDING):
        raise DataError(
            f"{path / RECIPE} asks for {thrown_away:,} parameters that only training needs, more than the "
            f"backbone has; set a "
            "smaller `reparameterization` or rank, as the saved weights do without."
        )
    held = sum(torch.Size(s).numel() for k, s in shapes.items() if not k.startswith("head."))
    if deployed + counted.state > held:
        raise DataError(
            f"{path / RECIPE} describes {deployed + counted.state:,} numbers on {spec.family!r}, but "
            f"{WEIGHTS} holds {held:,}; recipe, weights and backbone do not belong together."
        )


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
