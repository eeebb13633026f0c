"""PTP: prompt tuning whose loss is taken of perturbed inputs as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from autopeft.errors import MethodError
from autopeft.method import LossStep, MethodConfig, Traits, register

__all__ = ["PTP"]

Perturbation = Literal["noise", "adversarial", "masking"]
_TINY = 1e-12


@register("ptp")
class PTP:
    """L(x) + w·L(x̃), x̃ the rows with a small perturbation, drawn or found anew in each step.

    Chen et al. 2023, arXiv:2305.02423: it smooths the loss of prompts, which is steep. A training policy: it
    places nothing, has no parameters, and stands beside any prompt (`p_tuning_v2` in the paper,
    `prompt_tuning`), or another method. `noise` is PTP-RN in embedding space: e(x) + δ, δ ~ N(0, σ²).
    `masking` is PTP-RN in the text: a share of each row's tokens becomes the token `mask_id`; ids in `spared`
    are left (special tokens), and prompts are no tokens. `adversarial` is PTP-ADV in embedding space: from δ
    = 0, `steps` times δ ← proj(δ + η·g/‖g‖), g the gradient of the loss and proj onto ‖δ‖ ≤ ε·‖e(x)‖; norms
    are of whole rows without padding, and η is `step_size`·ε·‖e(x)‖. Its text attack by other words is not
    built. Each step takes one forward more, with `adversarial` `steps` more than that. δ is not trained.

    No code of the authors was found, and of the paper its abstract and pages on it alone. They name noise and
    adversarial perturbations, of the text and of embeddings, and say that prompts learn from the rows and
    from the perturbed ones. That the loss is this sum, the ball, w, σ, ε, η, the number of steps and the
    share of masked tokens are choices of this project: report them with each result. Evaluation is the
    host's.
    """

    traits = Traits(level="training", stochastic=True)

    class Config(MethodConfig):
        perturbation: Perturbation = "noise"
        weight: float = Field(default=1.0, gt=0, le=10, description="w")
        sigma: float = Field(default=0.01, ge=0, le=10, description="σ of `noise`")
        epsilon: float = Field(default=0.01, ge=0, le=1, description="ε of `adversarial`")
        steps: int = Field(default=1, ge=1, le=20, description="of `adversarial`")
        step_size: float = Field(default=1.0, gt=0, le=2, description="η of `adversarial`, of its radius")
        share: float = Field(default=0.1, ge=0, lt=1, description="of a row's tokens, for `masking`")
        mask_id: int | None = Field(default=None, ge=0, description="the id that `masking` puts in")
        spared: tuple[int, ...] | None = Field(default=None, description="ids that `masking` leaves")

        @model_validator(mode="after")
        def _masks_with_something(self) -> PTP.Config:
            if self.perturbation == "masking" and self.mask_id is None:
                raise ValueError(
                    "masking needs `mask_id`, the id of the tokenizer's mask token (tokenizer.mask_token_id)"
                )
            if self.perturbation == "masking" and self.spared is None:
                raise ValueError(
                    "masking needs `spared`, the ids that stay: those of special tokens "
                    "(tokenizer.all_special_ids), or [] for none"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config

    def acts_on(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether something trains beside the head."""
        return any(group.get("name") != "head" and group["params"] for group in groups)

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """w·L(x̃); nothing where no gradient is asked for."""
        if not torch.is_grad_enabled():
            return None
        c = self.config
        if c.perturbation == "noise":
            logits = step.again(embeddings=lambda e: e + c.sigma * torch.randn_like(e))
        elif c.perturbation == "masking":
            logits = step.again(input_ids=self.masked(step.batch))
        else:
            delta = self.worst(step)
            logits = step.again(embeddings=lambda e: e + delta.to(e.dtype))
        return c.weight * step.loss(logits)

    def masked(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The ids (rows, positions) with a share of them masked."""
        ids = batch["input_ids"]
        spared = torch.isin(ids, torch.tensor(self.config.spared or (), device=ids.device, dtype=ids.dtype))
        drawn = (torch.rand(ids.shape, device=ids.device) < self.config.share) & ~spared
        if "attention_mask" in batch:
            drawn &= batch["attention_mask"].bool()
        assert self.config.mask_id is not None
        return ids.masked_fill(drawn, self.config.mask_id)

    def worst(self, step: LossStep) -> Tensor:
        """δ (rows, positions, width) of PTP-ADV, without a gradient."""
        # The embeddings may be in 16 bits, in which squares and `_TINY` become zero: δ is not.
        c, mask = self.config, step.batch.get("attention_mask")
        delta = radius = torch.zeros(())

        def moved(e: Tensor) -> Tensor:
            nonlocal delta, radius
            if not delta.ndim:
                delta = torch.zeros_like(e, dtype=torch.float32).requires_grad_()
                radius = c.epsilon * _norm(e.detach(), mask)
            return e + delta.to(e.dtype)

        for _ in range(c.steps):
            (gradient,) = _gradient(step.loss(step.again(embeddings=moved)), delta)
            g = gradient if mask is None else gradient * mask[..., None]
            with torch.no_grad():
                now = delta + c.step_size * radius * g / _norm(g).clamp(min=_TINY)
                delta = now * (radius / _norm(now).clamp(min=_TINY)).clamp(max=1)
            delta.requires_grad_()
        return delta.detach()


def _norm(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of each row (rows, positions, width) as a whole, (rows, 1, 1), in 32 bits."""
    x = x.float() if mask is None else x.float() * mask[..., None]
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return norm


def _gradient(loss: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
    try:
        return torch.autograd.grad(loss, wanted)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise MethodError(
            "The adversarial perturbation of ptp needs a gradient of its own, which reentrant checkpointing "
            "cannot give; turn that on with use_reentrant=False, or take perturbation 'noise'."
        ) from error
