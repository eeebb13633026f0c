"""SAM: the Second-order Approximation Method chooses which entries train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autopeft.errors import MethodError, UsageError
from autopeft.method import Calibration, Interim, Objective, ParameterCount, Traits, register
from autopeft.nn import KeepConfig, RankedEntries, clip_factor, requiring
from autopeft.quantity import parse_quantity
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["SAM"]

Batch = dict[str, Tensor]


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    """One pass after another, as long as a pass has something."""
    seen = True
    while seen:
        seen = False
        for batch in batches:
            seen = True
            yield batch


class _Curvature:
    """Sums of the gradients g of batches and, where it is asked for, of the diagonals h of their Hessians.

    Both are those of c·loss, c what clips the gradient of the batch, so that g and h are of one function.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: SAM.Config) -> None:
        self.parameters, self.config = parameters, config
        self.second = config.score == "g2_over_h"
        self.gradient = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters]
        self.diagonal = [torch.zeros_like(g) for g in self.gradient] if self.second else []
        self.batches = 0

    def observe(self, batch: Batch, objective: Objective, head: Sequence[nn.Parameter]) -> None:
        """Take in a batch; the gradient of the `head` counts in the norm that is clipped."""
        every = [*self.parameters, *head]
        if self.second:
            found = torch.autograd.grad(
                objective(batch), every, create_graph=True, allow_unused=True, materialize_grads=True
            )
        else:
            found = tuple(objective.gradients(batch, every))
        factor = clip_factor((g.detach().float() for g in found), self.config.clip)
        own = found[: len(self.parameters)]
        for total, gradient in zip(self.gradient, own, strict=True):
            total.add_(gradient.detach().float() * factor)
        for _ in range(self.config.probes if self.second else 0):
            self._probe(own, factor / self.config.probes)
        self.batches += 1

    def _probe(self, gradients: Sequence[Tensor], factor: Tensor) -> None:
        """Add v·(Hv) with signs v, whose mean over draws is the diagonal of H (Hutchinson)."""
        reached = [(i, g) for i, g in enumerate(gradients) if g.grad_fn is not None]
        signs = [torch.randint(0, 2, g.shape, device=g.device).to(g.dtype) * 2 - 1 for _, g in reached]
        inputs = [self.parameters[i] for i, _ in reached]
        products = torch.autograd.grad(
            [g for _, g in reached], inputs, signs, retain_graph=True, allow_unused=True
        )
        for (i, _), sign, product in zip(reached, signs, products, strict=True):
            if product is not None:
                self.diagonal[i].add_((sign * product).float() * factor)

    def scores(self) -> list[Tensor]:
        """|g|, or g²/max(|h|, ε), of the means over batches."""
        if not self.second:
            return [g.abs() for g in self.gradient]
        n, least = self.batches, self.config.epsilon
        pairs = zip(self.gradient, self.diagonal, strict=True)
        return [(g / n).square() / (h / n).abs().clamp(min=least) for g, h in pairs]


class SAMModule(RankedEntries):
    """Values at some entries of each tensor, chosen once by calibration."""

    calibration = Calibration(rows=None, training=True)

    def __init__(self, tensors: Sequence[TensorSpec], sizes: Sequence[int], config: SAM.Config) -> None:
        super().__init__(tensors, sum(sizes), "sam", sizes)
        self.config = config

    def measurement(self) -> dict[str, Any]:
        second = {"probes", "epsilon"} if self.config.score == "g2_over_h" else set()
        return {
            "reach": self.reach,
            **self.config.model_dump(include={"score", "batches", "clip"} | second),
        }

    def measure(self, base: nn.Module, batches: Iterable[Batch], objective: Objective) -> dict[str, Tensor]:
        """Sum up what `batches` of the training batches say, without a step."""
        parameters = [base.get_parameter(t.name) for t in self.entries.tensors]
        inside = {id(p) for p in base.parameters()}
        head = [p for p in objective.model.parameters() if p.requires_grad and id(p) not in inside]
        curvature = _Curvature(parameters, self.config)
        # The fused kernels of attention have no second derivative.
        kernel = sdpa_kernel(SDPBackend.MATH) if curvature.second else nullcontext()
        with requiring(parameters), kernel:
            for batch in islice(_endless(batches), self.config.batches):
                curvature.observe(batch, objective, head)
        if not curvature.batches:
            raise UsageError("sam needs at least one training example to calibrate on, but got none.")
        return self.ranking(curvature.scores())


@register("sam")
class SAM:
    """θ = θ₀ + scatter(idx, v), idx in each tensor the ⌊ρ·size⌋ entries of largest |Σ_B clip(∂loss(B)/∂θ)|.

    Fu et al. 2022, arXiv:2211.15583: the Second-order Approximation Method, not the optimizer of that name.
    v is zero at init. Of a loss with gradient g and a diagonal Hessian h ≥ 0 the best k entries to move are
    those of largest g²/|h| (Theorem 3); with one bound for all h these are those of largest |g|. The
    gradients of `batches` batches at θ₀, with the fresh head and the backbone's dropout, are summed with
    their signs, so that what cancels counts for nothing; the whole gradient of a batch, that of the head
    included, is clipped to the norm `clip`. The mask is fixed from then on. `score: g2_over_h` estimates h
    too, by `probes` random signs for each batch (Hutchinson), with the factor that clipped g. A negative h
    counts by its magnitude, as in the authors' code, and |h| as `epsilon` at least. That needs second
    derivatives, for which attention is computed without its fused kernels, and a batch goes through the
    model as a whole.

    `keep` is ρ, of every tensor alike, or k, which is shared out as ρ = k/size of all and rounded down: a
    tensor of few entries may keep none. Of equal scores the first ones are kept. A tensor that the loss does
    not reach keeps its first entries, which stay zero. In the authors' code weight decay pulls all entries,
    those outside the mask too; here it pulls the trained ones towards θ₀. The head is trained whole and
    counted apart. Mergeable. Σ ⌊ρ·size⌋ parameters (and as many indices, which are storage).
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
        score: Literal["absgrad", "g2_over_h"] = Field(
            default="absgrad", description="|g|, or g²/|h| with an estimated diagonal Hessian h"
        )
        batches: int = Field(default=599, ge=1, le=1_000_000, description="batches that are summed")
        clip: float = Field(default=1.0, ge=0, description="norm of a batch's gradient; 0 leaves it alone")
        probes: int = Field(default=1, ge=1, le=1000, description="random signs for each batch's h")
        epsilon: float = Field(default=1e-6, gt=0, description="what |h| counts at least")

    def __init__(self, config: Config) -> None:
        self.config = config

    def _sizes(self, spec: BackboneSpec) -> list[int]:
        """Entries of each tensor."""
        keep = parse_quantity(self.config.keep)
        total = sum(t.size for t in spec.tensors)
        if keep.share:
            sizes = [keep.of(t.size) for t in spec.tensors]
        else:
            k = self.config.count("sam", spec.tensors, spec)
            sizes = [k * t.size // total for t in spec.tensors]
        if not sum(sizes):
            raise MethodError(f"sam with keep={self.config.keep!r} keeps less than one entry of each tensor.")
        return sizes

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = sum(self._sizes(spec))
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """Sums of gradients and the gradient of a batch; with h also its sum, random signs and products."""
        copies = 2 if self.config.score == "absgrad" else 5
        return Interim(held=copies * sum(t.size for t in spec.tensors))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return SAMModule(spec.tensors, self._sizes(spec), self.config)
