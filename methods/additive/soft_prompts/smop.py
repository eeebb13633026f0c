"""SMoP: of several short prompts each text gets the one that a router chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, MethodConfig, ParameterCount, Slot, Traits, register
from autopeft.nn import Router, summarised
from autopeft.spec import BackboneSpec, Site

__all__ = ["SMoP"]


class PromptMixture(nn.Module):
    """The prompts (E, length, d) and their router; one prompt alone has none.

    Args:
        router: chooses among them by x̄ (batch, d).
    """

    def __init__(self, experts: int, length: int, width: int, router: Router | None) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(experts, length, width))
        self.router = router

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(self.prompts.shape[1]),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        if self.router is None:
            return self.prompts
        weights = self.router(summarised(x, call.context.text_mask, "mean")).to(x.dtype)
        return torch.einsum("be,eld->bld", weights, self.prompts)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The prompts, and what chooses among them."""
        return {"prompts": [self.prompts], "router": [] if self.router is None else [self.router.weight]}


@register("smop")
class SMoP:
    """H₀ = [Σⱼ gⱼ·Pⱼ; Emb(x)] over the k largest of g = softmax(x̄·W), of E prompts Pⱼ (length × d).

    Choi et al. 2023, ACL:2023.emnlp-main.884. x̄ is the mean of the text's token embeddings, padding left out,
    W (d × E) a router without bias. With `top_k` = 1 each text gets one prompt, times its weight, by which
    the router learns. The sequence grows by `length`, however many prompts there are. While it trains the
    router is perturbed: each logit is multiplied by 1 + σ·ε, ε ~ N(0, 1), through which no gradient goes.
    Defaults are those of the authors' code (jyjohnchoi/SMoP, README.md): E = 4, l = 5, k = 1, σ = `noise` =
    1. Without noise they leave 0.2 of the logits out (`dropout`). Pⱼ is N(0, 1), W orthogonal. One prompt
    alone has no router: it is prompt_tuning. In the encoder where there are two stacks. A decoder's prompt
    depends on all of its text, which a language model must not. Not the identity at init; not mergeable.

    E·l·d + E·d; with one prompt l·d.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        sees_text=True,
        stochastic=True,
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"
    part_names: tuple[str, ...] = ("prompts", "router")

    class Config(MethodConfig):
        length: int = Field(default=5, ge=1, le=512, description="l")
        experts: int = Field(default=4, ge=1, le=256, description="E")
        top_k: int = Field(default=1, ge=1, le=256, description="k")
        noise: float = Field(default=1.0, ge=0, le=10, description="σ, on the router's logits")
        dropout: float = Field(default=0.0, ge=0, lt=1, description="on the router's logits")

        @model_validator(mode="after")
        def _chooses_among_more(self) -> SMoP.Config:
            if self.top_k > self.experts:
                raise ValueError(f"top_k={self.top_k} prompts cannot be chosen of {self.experts}; lower it")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.experts == 1:
            self.part_names = ("prompts",)
            self.traits = replace(self.traits, sees_text=False, stochastic=False)

    def _width(self, sites: Sequence[Site]) -> int:
        if len(sites) != 1:
            raise MethodError(
                "smop sits on the input embeddings of one stack, but got "
                f"{[s.path for s in sites]}; leave `sites` out."
            )
        return sites[0].out_features

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c, d = self.config, self._width(sites)
        n = c.experts * c.length * d + (Router.size(d, c.experts) if c.experts > 1 else 0)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c, d = self.config, self._width(sites)
        router = None
        if c.experts > 1:
            router = Router(
                d,
                c.experts,
                top_k=c.top_k,
                renormalize=False,
                init="orthogonal",
                noise=c.noise,
                dropout=c.dropout,
            )
        return PromptMixture(c.experts, c.length, d, router)
