"""Hybrids on disk: `recipe.yaml`, `weights.safetensors` and `hybrid.json` in one folder.

Weights are saved in deployed form (a prefix without its MLP) under
`<stack>.<layer>.<site>.<name>.<parameter>`, or `model.<name>.<parameter>` for what belongs to no single
site; the head's under `head.<parameter name>`. Folders come from strangers: sizes are compared with what
the recipe says before anything is allocated.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.assets import StoredTensor, model_name
from autopeft.errors import DataError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.hybrid.modules import counts_of, deployed_modules
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

__all__ = [
    "MANIFEST",
    "RECIPE",
    "SCAFFOLDING",
    "WEIGHTS",
    "check_size",
    "deployed_tensors",
    "save",
    "saved_key",
]

RECIPE, WEIGHTS, MANIFEST = "recipe.yaml", "weights.safetensors", "hybrid.json"
_FORMAT = 1
SCAFFOLDING = 50_000_000  # parameters of reparameterisations that loading may allocate for a moment
_SITE = re.compile(r"^(?P<name>[^.]+)\.(?P<front>(?:.*\.)?)at\.(?P<site>[^.]+)\.(?P<rest>.+)$")


def saved_key(key: str) -> str:
    """The saved name of a key of the root's state dict (`lora.at.encoder-0-q.A` → `encoder.0.q.lora.A`)."""
    match = _SITE.match(key)
    if match is None:
        return f"model.{key}"
    front = match["front"]
    return f"{match['site'].replace('-', '.')}.{match['name']}.{front}{match['rest']}"


def deployed_tensors(modules: Mapping[str, nn.Module], head: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """All tensors that inference needs, head included, by saved name, where they are. The modules themselves
    are not changed."""
    state: dict[str, Tensor] = {}
    for name, module in deployed_modules(modules).items():
        for key, value in module.state_dict().items():
            state[saved_key(f"{name}.{key}")] = value.detach()
    return state | {f"head.{name}": parameter.detach() for name, parameter in head.items()}


def save(
    folder: str | Path,
    model: PreTrainedModel,
    graph: CompositionGraph,
    modules: Mapping[str, nn.Module],
    head: Mapping[str, nn.Parameter],
) -> Path:
    """Write a hybrid into `folder` (made if needed); each file appears whole or not at all.

    Args:
        folder: where.
        model: what it is on. The manifest has its name (empty where it was made from a configuration), its
            class, and its configuration, labels included.
        graph: with the recipe.
        modules: of its entries and compositions, by name.
        head: the task head's parameters, by name.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = {name: t.cpu().contiguous().clone() for name, t in deployed_tensors(modules, head).items()}
    config = model.config
    settings = json.loads(config.to_json_string(use_diff=True))
    labels = {str(k): str(v) for k, v in (config.id2label or {}).items()}
    settings.update(id2label=labels, problem_type=getattr(config, "problem_type", None))
    manifest = {
        "format": _FORMAT,
        "family": graph.spec.family,
        "backbone_parameters": graph.spec.parameters,
        "structure": graph.hash(),
        "counts": counts_of(graph, modules, sum(p.numel() for p in head.values())).to_dict(),
        "model": model_name(getattr(config, "_name_or_path", "")),
        "architecture": type(model).__name__,
        "config": settings,
    }
    with tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as hidden:
        temporary = Path(hidden)
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / RECIPE).write_text(graph.recipe.to_yaml(), encoding="utf-8")
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(temporary / RECIPE, temporary / WEIGHTS)  # safetensors lets nobody else read it
        for name in (WEIGHTS, RECIPE, MANIFEST):
            os.replace(temporary / name, path / name)
    return path


def check_size(recipe: Recipe, spec: BackboneSpec, stored: Mapping[str, StoredTensor], path: Path) -> None:
    """Compare the recipe's closed-form count with what the file holds, before modules are allocated.

    Raises:
        DataError: the recipe describes more than the file holds, or more that only training needs than the
            backbone has.
    """
    graph = build_graph(recipe, spec)
    counted = graph.parameter_count()
    # Of what training may have pruned nothing need be in the file.
    pruned = sum(e.count.deployed for e in graph.entries.values() if e.traits.data_dependent)
    deployed = counted.deployed - pruned
    thrown_away = counted.trained - deployed
    if thrown_away > max(spec.parameters, SCAFFOLDING):
        raise DataError(
            f"{path / RECIPE} asks for {thrown_away:,} parameters that only training needs, more than the "
            f"backbone has; set a "
            "smaller `reparameterization` or rank, as the saved weights do without."
        )
    held = sum(math.prod(tensor.shape) for key, tensor in stored.items() if not key.startswith("head."))
    if deployed + counted.state > held:
        raise DataError(
            f"{path / RECIPE} describes {deployed + counted.state:,} numbers on {spec.family!r}, but "
            f"{WEIGHTS} holds {held:,}; recipe, weights and backbone do not belong together."
        )
