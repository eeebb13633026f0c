"""Full fine-tuning as a baseline: every weight trains, and comes back afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.assets.heads import head_names
from autopeft.counting import Counts
from autopeft.hybrid.optimizer import groups_of_head
from autopeft.recipe import Recipe, TrainingSection

__all__ = ["FullFineTuning"]


class FullFineTuning:
    """A model whose backbone and head both train. `detach` puts every tensor and flag back as it was.

    A copy of all tensors is kept meanwhile on their device.

    Args:
        model: the model with its head.
        training: rates by group; the groups are `backbone`, `head` and `head.hidden`.
    """

    needs_prepare = False

    def __init__(self, model: PreTrainedModel, training: TrainingSection) -> None:
        self.model = model
        self.recipe = Recipe(name="full-fine-tuning", training=training)
        self.modules: dict[str, nn.Module] = {}
        self.trained_modules = self.modules
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        self._kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    def prepare(self, batches: Any, objective: Any, *, kept: Any = None) -> None:
        """Nothing needs calibration."""

    def _parts(self) -> dict[str, list[nn.Parameter]]:
        # T5's models are their own base: there is no head beside them.
        bare = self.model.base_model is self.model
        heads = [] if bare else [self.model.get_submodule(name) for name in head_names(self.model)]
        # A language model's output layer may be its table of embeddings, which is the backbone's.
        table = {id(p) for p in self.model.get_input_embeddings().parameters()}
        head = {id(p) for module in heads for p in module.parameters()} - table
        parts: dict[str, list[nn.Parameter]] = {"backbone": [], "head": []}
        for parameter in self.model.parameters():
            parts["head" if id(parameter) in head else "backbone"].append(parameter)
        return parts

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer groups of the backbone and of the head (see `groups_of_head`)."""
        training, parts = self.recipe.training, self._parts()
        own = {id(p) for p in parts["head"]}
        head = {name: p for name, p in self.model.named_parameters() if id(p) in own}
        rate, decay = training.settings("backbone")
        backbone = {"name": "backbone", "params": parts["backbone"], "lr": rate, "weight_decay": decay}
        return [backbone, *groups_of_head(self.model, head, training)]

    def counts(self) -> Counts:
        """The whole backbone is deployed and trained."""
        sizes = {name: sum(p.numel() for p in part) for name, part in self._parts().items()}
        return Counts(sizes["backbone"], sizes["backbone"], sizes["head"], sizes["backbone"])

    @torch.no_grad()
    def detach(self) -> None:
        """Every tensor and flag as before."""
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(self._kept[name])
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
