"""SPoT: a prompt that starts from the prompts of other tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import MethodConfig, ParameterCount, PeftFormat, Phase, Stored, Traits, register
from autopeft.nn import (
    PromptInit,
    PromptTable,
    Similarity,
    mixture,
    prompt_similarity,
    prompt_width,
    stored_prompt,
)
from autopeft.spec import BackboneSpec, Site

__all__ = ["SPoT"]

_TASK = "task_prompt"


class SPoTModule(PromptTable):
    """A prompt, and what it was after few steps, by which its task is told from others.

    Attributes:
        weights: of the sources in what the prompt started from, (sources,), once they are known.
    """

    task_prompt: Tensor

    def __init__(self, width: int, config: SPoT.Config) -> None:
        super().__init__(config.length, width, config.init)
        self.config = config
        self.register_buffer(_TASK, torch.zeros(config.length, width))
        self.weights: Tensor | None = None
        self._sources: tuple[Tensor, ...] = ()
        self._tasks: tuple[Tensor, ...] = ()
        self._early: Tensor | None = None

    @torch.no_grad()
    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Begin with the only source's prompt, or keep several until the task's own prompt is known."""
        shape = (self.config.length, self.table.shape[1])
        self._sources = tuple(stored_prompt(s, *shape) for s in stored)
        names = [_TASK if _TASK in s.tensors else None for s in stored]
        self._tasks = tuple(stored_prompt(s, *shape, name) for s, name in zip(stored, names, strict=True))
        if len(stored) == 1:
            self.table.copy_(self._sources[0])
            self.weights = torch.ones(1)

    def phases(self) -> list[Phase]:
        """With several sources a first one, `task`, that trains the prompt from its own init."""
        if len(self._sources) < 2:
            return [Phase("target")]
        share = self.config.task_share
        return [
            Phase("task", share, output=self._choose),
            Phase("target", 1 - share, anew=True, begin=self._begin),
        ]

    def _choose(self) -> Tensor:
        self._early = self.table.detach().clone()
        kind, early = self.config.similarity, self._early.cpu()
        similarities = torch.stack([prompt_similarity(early, task, kind) for task in self._tasks])
        self.weights = mixture(similarities, self.config.top)
        return similarities

    @torch.no_grad()
    def _begin(self) -> None:
        assert self.weights is not None
        assert self._early is not None
        self.task_prompt.copy_(self._early)
        mixed = [w * prompt for w, prompt in zip(self.weights, self._sources, strict=True) if w > 0]
        self.table.copy_(torch.stack(mixed).sum(0))

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        if len(self._sources) < 2 and step + 1 == math.ceil(self.config.task_share * total):
            self._early = self.table.detach().clone()
            self.task_prompt.copy_(self._early)

    @torch.no_grad()
    def finish(self) -> None:
        """What was noted stays, also where training went back to an earlier state."""
        if self._early is not None:
            self.task_prompt.copy_(self._early)
        elif not self.task_prompt.any():  # the training was stopped before
            self.task_prompt.copy_(self.table)


@register("spot")
class SPoT:
    """H₀ = [P; Emb(x)] as in prompt tuning, where P starts from the prompts of other tasks.

    Vu et al. 2022, arXiv:2110.07904. A recipe's `from:` names the sources, trained by `spot`,
    `prompt_tuning`, `tpt` or `p_tuning` with the same `length`. From one source P is its prompt. Among
    several it chooses by similarity: P is trained from its own `init` for the share `task_share` of the
    steps, which gives the target's task prompt e; then all that is trained returns to its first values, P
    becomes Σ αᵢ·Pᵢ over the `top` sources whose task prompts eᵢ are most similar to e, αᵢ their similarities
    in proportion, and the other steps train it. `top: 1` takes the most similar one. `similarity` is the
    cosine of the mean rows (`mean`) or the mean cosine of all pairs of rows (`pairs`). The "best of top-k" of
    the paper are k recipes with one source each, compared on *select*.

    Without `from:` it is prompt tuning that notes e after the share `task_share` of its steps; e is saved
    beside P, so that it can be a source. Of a source that has none P stands for it. A prompt trained on a
    mixture of tasks needs one, and is not made here. Not the identity at init; not mergeable. length·d
    parameters, and as many saved numbers of e.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        identity=False,
        gateable=False,
        phased=True,
    )
    size_field: ClassVar[str] = "length"
    peft = PeftFormat("prompt")

    class Config(MethodConfig):
        length: int = Field(default=100, ge=1, le=4096, description="l")
        init: PromptInit = "uniform"
        task_share: float = Field(default=0.04, gt=0, lt=1, description="of the steps, to the task prompt")
        similarity: Similarity = Field(default="mean", description="of task prompts")
        top: int = Field(default=1, ge=1, le=64, description="k, of which the mean is weighted by similarity")

    def __init__(self, config: Config) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self.config.length * prompt_width("spot", sites, spec, self.config.init)
        return ParameterCount(n, n, state=n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return SPoTModule(prompt_width("spot", sites, spec, self.config.init), self.config)
