"""A saved hybrid on a live model (see `autopeft.hybrid.store` for the files)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.assets import FLOATS, StoredTensor, read_header
from autopeft.backbones import spec_of_model
from autopeft.errors import DataError
from autopeft.foreign import file_in
from autopeft.hybrid.hybrid import Hybrid, attach
from autopeft.hybrid.labels import nameless, read_labels
from autopeft.hybrid.modules import head_of
from autopeft.hybrid.store import RECIPE, WEIGHTS, check_size, saved_key
from autopeft.recipe import Recipe

__all__ = ["load"]

_EXACT = {torch.bool: "BOOL", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64"}


def load(model: PreTrainedModel, folder: str | Path) -> Hybrid:
    """Attach a saved hybrid to a model of the same backbone, head included.

    The model's configuration gets the labels and the problem type that it had when the hybrid was saved, so
    that `predict` and a `pipeline` of transformers answer with them; `detach` gives it back its own.

    Raises:
        DataError: files are missing, damaged, or do not belong to this recipe and backbone, or the model has
        another number of labels. It is then unchanged. UsageError: the recipe does not fit the model.
    """
    path = Path(folder)
    missing = [n for n in (RECIPE, WEIGHTS) if file_in(path, n) is None]
    if missing:
        raise DataError(
            f"{path} holds no saved hybrid: {', '.join(missing)} is missing; name a folder that save() or "
            f"`autopeft export` wrote."
        )
    recipe = Recipe.from_file(path / RECIPE)
    spec, _ = spec_of_model(model)
    stored = read_header(path / WEIGHTS)
    check_size(recipe, spec, stored, path)
    labels = read_labels(path, model.config.num_labels) if head_of(model) else None
    hybrid = attach(model, recipe, seed=0, runs=None)
    before = [(p, p.detach().clone()) for p in hybrid.head_parameters()]
    try:
        _fill(hybrid, path / WEIGHTS, stored)
        if labels is not None:
            config: Any = model.config
            names, config.problem_type = labels
            if not nameless(names):  # names that were made up do not replace others
                config.id2label = names
                config.label2id = {name: index for index, name in names.items()}
    except BaseException:
        hybrid.detach()
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        raise
    return hybrid


def _fill(hybrid: Hybrid, file: Path, stored: Mapping[str, StoredTensor]) -> None:
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    own: dict[str, Tensor] = {}
    for name, module in hybrid.modules.items():
        deploy: Any = getattr(module, "deploy", None)
        if deploy is not None:
            deploy()
        resize: Any = getattr(module, "resize", None)
        held = module.state_dict()
        saved = {k: shapes.get(saved_key(f"{name}.{k}"), ()) for k in held}
        # A module of data-dependent size gets the saved shapes, as far as they can be its own.
        if resize is not None and all(len(saved[k]) == held[k].ndim for k in held):
            resize(saved)
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
    for key, target in targets.items():
        # Numbers of one kind are no numbers of another.
        kind = stored[key].dtype
        if not (kind in FLOATS if target.is_floating_point() else kind == _EXACT.get(target.dtype)):
            raise DataError(
                f"{file} does not fit this model: {key} is {kind} in the file, and {target.dtype} in the "
                "model."
            )
    try:
        with safe_open(file, framework="pt") as handle:
            read = {key: handle.get_tensor(key) for key in targets}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    with torch.no_grad():
        for key, target in own.items():
            target.copy_(read[key])
        hybrid.refresh()  # refuses a damaged mask, while the model's head is still its own
        for key, parameter in head.items():
            parameter.copy_(read[key])
    hybrid.prepared = True
