"""FISH mask: train the entries of largest Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError, UsageError
from autopeft.method import Interim, Objective, ParameterCount, Traits, register
from autopeft.nn import GRADIENT_POWERS, KeepConfig, RankedEntries, requiring
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["FishMask", "fisher"]

Example = dict[str, Tensor]


def _examples(batches: Iterable[Example]) -> Iterator[Example]:
    """One example at a time: the square of a batch's gradient is not the sum of the squares."""
    for batch in batches:
        for i in range(len(next(iter(batch.values())))):
            yield {name: value[i : i + 1] for name, value in batch.items()}


def _terms(objective: Objective, example: Example, mode: str) -> Iterator[tuple[Tensor, float]]:
    """Losses to differentiate, each with its weight."""
    if mode == "label":
        yield objective(example), 1.0
        return
    logits = objective.logits(example)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise MethodError(
            "fish_mask with mode 'expect' needs scores of two classes or more, but the model gives shape "
            f"{tuple(logits.shape)}; use mode 'label'."
        )
    log_p = torch.log_softmax(logits[0].float(), dim=-1)
    for label, p in enumerate(log_p.detach().exp().cpu().tolist()):
        yield -log_p[label], p


def fisher(
    parameters: Mapping[str, nn.Parameter],
    examples: Iterable[Example],
    objective: Objective,
    *,
    grad_type: Literal["square", "absolute"] = "square",
    mode: Literal["label", "expect"] = "label",
) -> dict[str, Tensor]:
    """Empirical diagonal Fisher information of each parameter, summed over single examples (not averaged).

    `label`: Σₙ (∂loss(xₙ, yₙ)/∂θ)², `expect`: Σₙ Σ_y p(y|xₙ)·(∂−log p(y|xₙ)/∂θ)²; with `absolute` the
    absolute value stands for the square. Parameters that a loss does not reach get no score from it.
    Gradients already held and `requires_grad` stay as they were.

    Raises:
        UsageError: there is no example.
        MethodError: mode `expect` on a model that does not classify.
    """
    power = GRADIENT_POWERS[grad_type]
    scores = {n: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for n, p in parameters.items()}
    seen = 0
    with requiring(parameters.values()):
        for example in examples:
            seen += 1
            for loss, share in _terms(objective, example, mode):
                grads = torch.autograd.grad(
                    loss, list(parameters.values()), retain_graph=mode == "expect", allow_unused=True
                )
                for name, grad in zip(parameters, grads, strict=True):
                    if grad is not None:
                        scores[name].add_(power(grad.float()), alpha=share)
                del grad, grads  # before the next ones are made
    if not seen:
        raise UsageError("fish_mask needs at least one training example to calibrate on, but got none.")
    return scores


class FishMaskModule(RankedEntries):
    """Values at k entries of the backbone, chosen once by calibration."""

    def __init__(self, tensors: Sequence[TensorSpec], k: int, config: FishMask.Config) -> None:
        super().__init__(tensors, k, "fish_mask")
        self.config = config

    def measurement(self) -> dict[str, Any]:
        return {"reach": self.reach, **self.config.model_dump(include={"samples", "grad_type", "mode"})}

    def measure(self, base: nn.Module, batches: Iterable[Example], objective: Objective) -> dict[str, Tensor]:
        """Score every entry on up to `samples` examples."""
        c = self.config
        named = dict(base.named_parameters())
        parameters = {t.name: named[t.name] for t in self.entries.tensors}
        examples = islice(_examples(batches), c.samples)
        scores = fisher(parameters, examples, objective, grad_type=c.grad_type, mode=c.mode)
        return self.ranking(scores.values())


@register("fish_mask")
class FishMask:
    """θ = θ₀ + scatter(idx, v), idx the k entries of largest F = Σₙ (∂loss(xₙ, yₙ)/∂θ)², v (k) zero at init.

    Sung et al. 2021, arXiv:2111.09839. F is measured at θ₀ with the fresh head on `samples` training
    examples, one gradient for each; the loss of an example is that of a batch of it alone, so that of a
    language model it is the mean over its learnt tokens. `mode: expect` takes the expectation over the
    model's own labels, which are classes: over a vocabulary it would take a gradient for each word at each
    token. `grad_type: absolute` sums absolute values. The k largest are taken over all tensors of the base
    model at once, embeddings included. `keep` is k, or a share of the base model. The head is trained whole
    and counted apart; the authors' code takes its size off the budget, this does not. Mergeable. k
    parameters (and k indices, which are storage).
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        level="model",
        needs=frozenset({"calibration"}),
        mergeable=True,
        gateable=False,
    )
    size_field: ClassVar[str] = "keep"

    class Config(KeepConfig):
        samples: int = Field(default=1024, ge=1, le=1_000_000)
        grad_type: Literal["square", "absolute"] = "square"
        mode: Literal["label", "expect"] = "label"

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.mode == "expect":
            self.traits = replace(self.traits, needs=self.traits.needs | {"row_logits"})

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self.config.count("fish_mask", spec.tensors, spec)
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """Scores of all entries and the gradient of an example."""
        return Interim(held=2 * sum(t.size for t in spec.tensors))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return FishMaskModule(spec.tensors, self.config.count("fish_mask", spec.tensors, spec), self.config)
