"""Prompt-tuning: trained vectors in front of the input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, Slot, Traits, register
from autopeft.spec import BackboneSpec, Site

__all__ = ["PromptTuning"]

Init = Literal["uniform", "normal", "vocabulary"]
FREQUENT = 5000


class PromptTuningModule(nn.Module):
    """The prompt, (length, d)."""

    def __init__(self, length: int, width: int, init: Init) -> None:
        super().__init__()
        self.init = init
        self.table = nn.Parameter(torch.empty(length, width))
        # Drawn here, so that the seed of the modules' init settles which rows are copied later.
        self._seed = int(torch.randint(2**62, ()))
        if init == "normal":
            nn.init.normal_(self.table, std=0.02)
        else:
            nn.init.uniform_(self.table, -0.5, 0.5)

    def initialise_prompt(self, embedding: Tensor) -> None:
        """With init `vocabulary`, copy random rows of the 5,000 first token embeddings; takes (V, d)."""
        if self.init != "vocabulary":
            return
        known = min(FREQUENT, embedding.shape[0])
        draw = torch.Generator().manual_seed(self._seed)
        rows = torch.cat([torch.randperm(known, generator=draw) for _ in range(-(-len(self.table) // known))])
        with torch.no_grad():
            self.table.copy_(embedding[rows[: len(self.table)].to(embedding.device)])

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(len(self.table)),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return self.table[None]


@register("prompt_tuning")
class PromptTuning:
    """H₀ = [P; Emb(x)] with P (length × d) trained; in the encoder where there are two stacks.

    Lester et al. 2021, arXiv:2104.08691. `init`: `uniform` in [−0.5, 0.5]; `normal` N(0, 0.02);
    `vocabulary` copies embeddings of frequent tokens, taking the first 5,000 ids as these (vocabularies are
    ordered by frequency, roughly; BERT's first 1,000 are mostly unused). Vision backbones have no vocabulary
    and get the rows at the end. The sequence grows by `length`. Not the identity at init; not mergeable.
    length·d parameters.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"

    class Config(MethodConfig):
        length: int = Field(default=20, ge=1, le=4096, description="l")
        init: Init = "uniform"

    def __init__(self, config: Config) -> None:
        self.config = config

    def _width(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        if self.config.init == "vocabulary" and spec.modality != "text":
            raise MethodError(
                "prompt_tuning with init 'vocabulary' copies token embeddings, which the "
                f"{spec.modality} backbone {spec.family!r} does not have; use init 'uniform' or 'normal'."
            )
        if len(sites) != 1:
            raise MethodError(
                "prompt_tuning sits on the input embeddings of one stack, but got "
                f"{[s.path for s in sites]}; leave `sites` out."
            )
        return sites[0].out_features

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self.config.length * self._width(sites, spec)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return PromptTuningModule(self.config.length, self._width(sites, spec), self.config.init)
