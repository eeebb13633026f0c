"""InfoPrompt: prompts that keep information of the head and of the representation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import BARE, Call, LossStep, MethodConfig, ParameterCount, Slot, Traits, register
from autopeft.nn import Summary, summarised, summary_of
from autopeft.spec import BackboneSpec, Site

__all__ = ["InfoPrompt"]

_RANGE = (-2.0, 10.0)  # of ln σ


class Posterior(NamedTuple):
    """N(μ, σ²) of the latent z (rows, latent), or of each position's, (rows, positions, latent)."""

    mean: Tensor
    log_std: Tensor

    def draw(self) -> Tensor:
        """One z, in the shape of μ."""
        return self.mean + torch.randn_like(self.mean) * self.log_std.exp()

    def draws(self, count: int) -> Tensor:
        """(rows, count, latent)."""
        shape = (len(self.mean), count, self.mean.shape[-1])
        return Posterior(self.mean[:, None].expand(shape), self.log_std[:, None].expand(shape)).draw()

    def divergence(self) -> Tensor:
        """Mean over rows and latent of KL(N(μ, σ²) ‖ N(0, 1))."""
        terms = -self.log_std + 0.5 * self.log_std.exp() ** 2 + 0.5 * self.mean**2 - 0.5
        return terms.mean()


class InfoPromptModule(nn.Module):
    """The prompt's generator, the variational head, and the critic, which only training needs."""

    log_std: nn.Linear | None
    critic: nn.Linear | None

    def __init__(
        self, states: int, width: int, hidden: int, classes: int, feature: Summary, config: InfoPrompt.Config
    ) -> None:
        super().__init__()
        c = self.config = config
        self.generator = nn.Sequential(
            nn.Linear(states, c.latent), nn.GELU(), nn.Linear(c.latent, c.length * width)
        )
        self.mean, self.output = nn.Linear(hidden, c.latent), nn.Linear(c.latent, width)
        self.log_std, self.critic = nn.Linear(hidden, c.latent), nn.Linear(width, width)
        self.words = nn.Parameter(torch.randn(classes, width) * 0.02)
        self.feature = feature
        self._prompted, self._counted, self._progress = True, True, 0.0
        self._prompt: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._mask: Tensor | None = None
        self._posterior: Posterior | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a graph can be neither copied nor pickled.
        return {**self.__dict__, "_prompt": None, "_posterior": None, "_mask": None}

    def initialise_prompt(self, embedding: Tensor) -> None:
        """Begin with the embeddings of the label words, of a table (V, d)."""
        ids = self.config.label_words
        if ids is None:
            return
        known = all(0 <= word < len(embedding) for word in ids)
        if len(ids) != len(self.words) or not known:
            raise MethodError(
                f"infoprompt has label_words={list(ids)}, but the head has {len(self.words)} classes and the "
                f"vocabulary the tokens from 0 to {len(embedding) - 1:,}; name one token's id for each "
                "class, in their order."
            )
        with torch.no_grad():
            self.words.copy_(embedding[torch.tensor(ids, device=embedding.device)])

    def slots(self, site: Site) -> Sequence[Slot]:
        offset = 1 if self.feature == "first" else 0
        return (Slot(self.config.length, offset=offset),) if self._prompted else ()

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        states = call.context.features[BARE].to(x.dtype)
        made = self.generator(summarised(states, call.context.text_mask, self.feature))
        rows: Tensor = made.view(len(x), self.config.length, -1)
        self._counted, self._mask = not call.context.further, call.context.text_mask
        if self.training and self._counted and torch.is_grad_enabled():
            self._prompt = rows, x, call.context.text_mask
        return rows

    def logits(self, hidden: Tensor, logits: Tensor, call: Call) -> Tensor:
        """(W_o·z + b_o)·Uᵀ in place of the head's own logits; z is drawn while training, else its mean."""
        z = self.mean(hidden)
        if self.training and self.log_std is not None:
            posterior = Posterior(z, self.log_std(hidden).clamp(*_RANGE))
            if self._counted or not self._prompted:
                self._posterior = self._read(posterior)
            z = posterior.draw()
        own: Tensor = self.output(z) @ self.words.T
        return own - logits

    def _read(self, posterior: Posterior) -> Posterior:
        """Of what the model reads: a decoder's head maps every position, and takes the last token's."""
        if posterior.mean.ndim == 2:
            return posterior
        mask = self._mask
        if mask is not None and mask.shape[1] != posterior.mean.shape[1]:  # a decoder's behind an encoder
            mask = None
        return Posterior(*(summarised(part, mask, "last") for part in posterior))

    def before_step(self, step: int, total: int) -> None:
        self._progress = step / total

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """γ·L_head + β·L_rep + κ·L_kl."""
        c, seen, after = self.config, self._prompt, self._posterior
        self._prompt = self._posterior = None
        if seen is None or after is None or not (c.beta or c.gamma or c.kappa):
            return None
        rows, tokens, mask = seen
        found = c.gamma * self.head_loss(rows, tokens, mask) if c.gamma else rows.new_zeros(())
        if c.beta or c.kappa:
            before = self._without_prompt(step)
            if c.beta:
                found = found + c.beta * self.representation_loss(rows, after, before)
            found = found + c.kappa * (after.divergence() + before.divergence())
        return (1 - c.decay * self._progress) * found

    def _without_prompt(self, step: LossStep) -> Posterior:
        """What the model makes of the rows by itself."""
        self._prompted = False
        try:
            step.again()
        finally:
            self._prompted = True
        before, self._posterior = self._posterior, None
        assert before is not None
        return before

    def head_loss(self, rows: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """InfoNCE of the prompt (batch, l, d) and U, against the text's token embeddings (batch, n, d)."""
        label = self.words.mean(0)
        scores = torch.cat([rows.mean(1, keepdim=True), tokens], dim=1) @ label / math.sqrt(len(label))
        if mask is not None:
            there = nn.functional.pad(mask.bool(), (1, 0), value=True)
            scores = scores.masked_fill(~there, -torch.inf)
        return -scores.log_softmax(-1)[:, 0].mean()

    def representation_loss(self, rows: Tensor, after: Posterior, before: Posterior) -> Tensor:
        """InfoNCE of the prompt and z with it, against draws of z without it."""
        assert self.critic is not None
        context = self.critic(rows.detach()).mean(1)
        draws = torch.cat([after.draws(1), before.draws(self.config.negatives)], dim=1)
        scores: Tensor = (self.output(draws) @ context[..., None])[..., 0] / math.sqrt(context.shape[-1])
        return -scores.log_softmax(-1)[:, 0].mean()

    def deploy(self) -> None:
        """Keep what predicts."""
        self.log_std = self.critic = None


@register("infoprompt")
class InfoPrompt:
    """H₀ = [CLS; P; Emb(x)], P = W₂·GELU(W₁·f(x) + b₁) + b₂; logits (W_o·z + b_o)·Uᵀ, z ~ N(μ(h), σ(h)²).

    Wu et al. 2023, arXiv:2306.04933. The loss gets γ·L_head + β·L_rep + κ·L_kl, times 1 − `decay`·(share of
    the steps taken). L_head = −log of the share that mean(P)·mean(U)/√d has among itself and the same scores
    of the text's token embeddings: it keeps information of the head. L_rep, the same with c = mean(W_p·P +
    b_p), P without gradient, against W_o·z of a draw with the prompt and of `negatives` draws without it, for
    which the rows go through the model once more: it keeps information of the representation. L_kl is the
    mean of KL(N(μ, σ²) ‖ N(0, 1)), with and without the prompt. ln σ is cut to −2 … 10; predictions take μ.

    As in the authors' code (JoshuaWu1997/infoprompt): f(x), what the frozen backbone makes of [CLS] by
    itself; one latent size for P's generator and z; the constants; maps as PyTorch starts them, U from the
    embeddings of the `label_words` (without them N(0, 0.02)). There each text gets the prompt of the first
    one of its batch, and 4 × batch negatives; h is the state of a [MASK] of a template, here it is what the
    model's last map reads, whose place this head takes: that map gets no gradient, and a recipe has one such
    entry. On decoders f(x) is the last token's, and P stands in front. Not the identity at init; not
    mergeable.

    Deployed: D·m + m + m·l·d + l·d of P, and h·m + m + m·d + d + C·d, D the states', h the last map's width;
    trained: h·m + m + d² + d more. Each forward takes two, each step one more.
    """

    traits = Traits(
        ways=frozenset({"prompt", "logits"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        needs=frozenset({"text", "row_logits"}),
        sees_text=True,
        features=frozenset({BARE}),
        stochastic=True,
        identity=False,
        gateable=False,
        batch_terms=True,
        replaces_head=True,
    )
    size_field: ClassVar[str] = "length"

    class Config(MethodConfig):
        length: int = Field(default=1, ge=1, le=512, description="l")
        latent: int = Field(default=32, ge=1, le=4096, description="m, of P's generator and of z")
        beta: float = Field(default=0.2, ge=0, le=100, description="β")
        gamma: float = Field(default=0.1, ge=0, le=100, description="γ")
        kappa: float = Field(default=0.1, ge=0, le=100, description="κ")
        decay: float = Field(default=0.0, ge=0, le=1, description="of the three terms, by the end")
        negatives: int = Field(
            default=32, ge=1, le=1024, description="draws without the prompt, for each row"
        )
        label_words: tuple[int, ...] | None = Field(default=None, description="a token's id for each class")

    def __init__(self, config: Config) -> None:
        self.config = config
        if not (config.beta or config.gamma or config.kappa):
            self.traits = replace(self.traits, batch_terms=False)

    def _sizes(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[int, int, int, int]:
        """Widths of the states, the embeddings and what the last map reads, and the classes."""
        if len(sites) != 1 or spec.logits is None:
            raise MethodError(
                "infoprompt sits on the input embeddings of one stack of a model with a head, but got "
                f"{[s.path for s in sites]}; leave `sites` out, and load the backbone with its head."
            )
        return spec.stacks[0].states, sites[0].out_features, spec.logits.hidden, spec.logits.width

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        (states, d, hidden, classes), c = self._sizes(sites, spec), self.config
        m, rows = c.latent, c.length * d
        deployed = (states + 1) * m + (m + 1) * rows + (hidden + 1) * m + (m + 1) * d + classes * d
        return ParameterCount(deployed, deployed + (hidden + 1) * m + (d + 1) * d)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        feature: Summary = summary_of(spec)
        return InfoPromptModule(*self._sizes(sites, spec), feature, self.config)
