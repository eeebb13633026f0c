"""Task heads of transformers models: which modules they are, and a start that depends on the seed alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.errors import UsageError

__all__ = ["head_names", "initial_spread", "label_options", "reset_head"]

_WITH_HEADS = "ForImageClassification"  # of which checkpoints often come with a head of other classes


def label_options(architecture: str, labels: int | None) -> str:
    """What a class of transformers is loaded with for so many labels, as arguments that follow another."""
    others = ", ignore_mismatched_sizes=True" if architecture.endswith(_WITH_HEADS) else ""
    return f", num_labels={labels}{others}"


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
            own = list(module.named_parameters(recurse=False))
            if any(parameter.ndim >= 2 for _, parameter in own):
                for kind, parameter in own:
                    _draw(parameter, 0.0 if kind == "bias" else std, generator)
            else:
                for kind, parameter in own:
                    nn.init.constant_(parameter, 0.0 if kind == "bias" else 1.0)


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


def _draw(parameter: nn.Parameter, std: float, generator: torch.Generator) -> None:
    if std == 0.0:
        parameter.zero_()
        return
    drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
    parameter.copy_(drawn)
