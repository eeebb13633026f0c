"""Prompt-tuning: trained vectors in front of the input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from autopeft.method import MethodConfig, ParameterCount, Traits, register
from autopeft.nn import PromptInit, PromptTable, prompt_width
from autopeft.spec import BackboneSpec, Site

__all__ = ["PromptTuning"]


@register("prompt_tuning")
class PromptTuning:
    """H₀ = [P; Emb(x)] with P (length × d) trained; in the encoder where there are two stacks.

    Lester et al. 2021, arXiv:2104.08691. `init`: `uniform` in [−0.5, 0.5]; `normal` N(0, 0.02);
    `vocabulary` copies embeddings of frequent tokens, taking the first 5,000 ids as these (vocabularies are
    ordered by frequency, roughly; BERT's first 1,000 are mostly unused). Vision backbones have no vocabulary
    and get the rows at the end. With a recipe's `from:` it begins with a stored prompt of the same shape that
    `prompt_tuning`, `spot`, `tpt` or `p_tuning` left: they leave rows among the embeddings alone. The
    sequence grows by `length`. Not the identity at init; not mergeable. length·d parameters.
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
        init: PromptInit = "uniform"

    def __init__(self, config: Config) -> None:
        self.config = config

    def _width(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        return prompt_width("prompt_tuning", sites, spec, self.config.init)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self.config.length * self._width(sites, spec)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return PromptTable(self.config.length, self._width(sites, spec), self.config.init)
