"""Task heads of transformers models: which modules they are, and a start that depends on the seed alone."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from autopeft.errors import UsageError

__all__ = [
    "HeadBank",
    "draw_missing",
    "drawn",
    "head_bank",
    "head_names",
    "initial_spread",
    "label_options",
    "plain_options",
    "renamed",
    "reset_head",
    "with_head",
    "with_heads",
]

_DRAWN = "_drawn_by_autopeft"
_BANK = "task_heads"

_WITH_HEADS = "ForImageClassification"  # of which checkpoints often come with a head of other classes


def label_options(architecture: str, labels: int | None) -> str:
    """The arguments with which a class of transformers is loaded for so many labels, behind another one."""
    others = ", ignore_mismatched_sizes=True" if architecture.endswith(_WITH_HEADS) else ""
    return f", num_labels={labels}{others}"


def plain_options(model: PreTrainedModel, *, labels: bool) -> str:
    """The arguments with which plain transformers loads a checkpoint as `model` was.

    Arguments that follow another: with `labels` their number and the padding token without which a decoder
    classifies no batch, and how the class calls its backbone where the checkpoint's calls it otherwise.
    """
    found, words = "", model.config.get_text_config()
    if labels:
        found = label_options(type(model).__name__, model.config.num_labels)
        pad = getattr(words, "pad_token_id", None)
        if pad is not None and pad != type(words)().pad_token_id:
            found += f", pad_token_id={int(pad)}"
    mapping = renamed(type(model.config), model.base_model_prefix)
    return found + (f", key_mapping={mapping!r}" if mapping else "")


def renamed(config: type[PretrainedConfig], prefix: str) -> dict[str, str]:
    """How weights of a backbone are called in a class that calls it `prefix`, as patterns: Llama's for
    question answering has `transformer.` for `model.`, which would leave them at random."""
    mapping = AutoModel._model_mapping
    plain = getattr(mapping[config], "base_model_prefix", "") if config in mapping else ""
    return {} if plain in ("", prefix) or not prefix else {f"^{re.escape(plain)}\\.": f"{prefix}."}


def head_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules beside the base model that hold parameters (`classifier`; `score`; …)."""
    base = model.base_model
    return tuple(
        name
        for name, child in model.named_children()
        if child is not base and name != "autopeft" and any(True for _ in child.parameters())
    )


@torch.no_grad()
def reset_head(model: PreTrainedModel, seed: int) -> None:
    """Start the head anew, in place: weights from N(0, `initializer_range`²), biases 0, norms the identity.

    Drawn on the CPU in fp32 from a generator of its own: the same seed gives the same head on every device
        and in every process, and torch's global generator is not touched. A configuration without
        `initializer_range` counts as 0.02.

    Raises:
        UsageError: `initializer_range` is no standard deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    std = initial_spread(model)
    for name in head_names(model):
        for module in model.get_submodule(name).modules():
            _start_anew(module, std, generator)


@torch.no_grad()
def draw_missing(model: PreTrainedModel, names: Collection[str]) -> None:
    """Draw parameters of the backbone that its checkpoint lacks, as `reset_head` does, from the seed 0
    whatever a run's is: they are frozen, so that no file of a hybrid holds them, and whoever loads the
    backbone again needs the same. `drawn` tells them."""
    generator = torch.Generator().manual_seed(0)
    std = initial_spread(model)
    for path, module in model.named_modules():
        own = [kind for kind, _ in module.named_parameters(recurse=False) if f"{path}.{kind}" in names]
        _start_anew(module, std, generator, only=own)
    setattr(model, _DRAWN, tuple(sorted(names)))


def drawn(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """By name what `draw_missing` drew: plain transformers would draw others, so that files for it need
    them."""
    return {name: model.get_parameter(name) for name in getattr(model, _DRAWN, ())}


def _start_anew(
    module: nn.Module, std: float, generator: torch.Generator, only: Collection[str] | None = None
) -> None:
    own = list(module.named_parameters(recurse=False))
    weights = any(parameter.ndim >= 2 for _, parameter in own)
    for kind, parameter in own:
        if only is not None and kind not in only:
            continue
        if kind == "bias" or (weights and std == 0.0):
            parameter.zero_()
        elif weights:
            drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
            parameter.copy_(drawn)
        else:
            parameter.fill_(1.0)


def initial_spread(model: PreTrainedModel) -> float:
    """Standard deviation of new weights, the configuration's `initializer_range`; 0.02 where it says none.

    Raises:
        UsageError: it is no standard deviation.
    """
    said: Any = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not 0 <= said < math.inf:
        name = model.config._name_or_path or type(model).__name__
        raise UsageError(
            f"The configuration of {name!r} has initializer_range={said!r:.80}, but a standard deviation is "
            "a number from 0; mend its config.json."
        )
    return float(said)


# Several heads
# ------------------------------------------------------------------------------------------------------


class HeadBank(nn.ModuleDict):
    """Further heads on a model's backbone, by name: models of transformers without their backbones.

    It is a child of the model that the backbone is in, so that what is done to a head (drawing, freezing,
    counting, saving) is done to these as well.
    """


def with_heads(model: PreTrainedModel, others: Mapping[str, PreTrainedModel]) -> PreTrainedModel:
    """The model with the heads of others in its `HeadBank`, in place; all share one backbone, the largest of
    theirs: some heads read a pooler, which models with other heads lack.

    Args:
        others: by the names of their heads, of one checkpoint. Their backbones are taken away.
    """
    if not others:
        return model

    def size(of: PreTrainedModel) -> int:
        return sum(p.numel() for p in of.base_model.parameters())

    largest = max([model, *others.values()], key=size)
    if size(largest) > size(model):
        setattr(model, model.base_model_prefix, largest.base_model)
        setattr(model, _DRAWN, getattr(largest, _DRAWN, ()))
    for other in others.values():
        del other._modules[other.base_model_prefix]
    # A name of a module has no full stop.
    model.add_module(_BANK, HeadBank({name.replace(".", "_"): other for name, other in others.items()}))
    return model


def head_bank(model: nn.Module) -> HeadBank | None:
    """The further heads of a model; `None` where it has one head."""
    return cast("HeadBank | None", model._modules.get(_BANK))


@contextmanager
def with_head(
    model: PreTrainedModel, name: str | None, backbone: nn.Module | None = None
) -> Iterator[PreTrainedModel]:
    """A model with one of the heads of `with_heads` on the shared backbone.

    Args:
        name: of the head; `None` for the model's own.
        backbone: in the place of the shared one, meanwhile.
    """
    bank = head_bank(model)
    own: Any = model if name is None else cast(HeadBank, bank)[name.replace(".", "_")]
    shared, prefix = model._modules[model.base_model_prefix], own.base_model_prefix
    own._modules[prefix] = shared if backbone is None else backbone
    if own is model and bank is not None:
        model._modules[_BANK] = None  # its place is kept
    try:
        yield own
    finally:
        if own is model:
            model._modules[prefix] = shared
            if bank is not None:
                model._modules[_BANK] = bank
        else:
            del own._modules[prefix]
