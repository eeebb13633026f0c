"""Child-tuning D: a child network that the task chooses before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Calibration, Interim, Objective, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import KeepConfig, RankedEntries, TensorDeltas, batch_gradients, clip_factor
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["ChildTuningD"]


class ChildModule(RankedEntries):
    """Values at k entries of the layers, and of everything outside them."""

    calibration = Calibration(rows=None, training=True)

    def __init__(
        self, tensors: Sequence[TensorSpec], k: int, rest: Sequence[TensorSpec], config: ChildTuningD.Config
    ) -> None:
        super().__init__(tensors, k, "child_tuning_d")
        self.rest, self.config = TensorDeltas(rest), config

    def weight_targets(self) -> Sequence[WeightTarget]:
        rest = [WeightTarget(tensor=name) for name in self.rest.names]
        return [*super().weight_targets(), *rest]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        part = self.rest if target.tensor in self.rest.names else self.entries
        return part.apply_to(str(target.tensor), current)

    def measurement(self) -> dict[str, Any]:
        return {"reach": self.reach, "clip": self.config.clip}

    def measure(
        self, base: nn.Module, batches: Iterable[dict[str, Tensor]], objective: Objective
    ) -> dict[str, Tensor]:
        """Sum the squares of the batches' gradients, each tensor's clipped by itself."""
        parameters = [base.get_parameter(t.name) for t in self.entries.tensors]
        scores = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters]
        for gradients in batch_gradients(parameters, batches, objective, self.name):
            for score, gradient in zip(scores, gradients, strict=True):
                clipped = gradient * clip_factor([gradient], self.config.clip)
                score.addcmul_(clipped, clipped)
            del gradient, clipped, gradients  # before the next ones are made
        return self.ranking(scores)

    def settle(self, measured: Mapping[str, Tensor]) -> None:
        super().settle(measured)
        for value in self.rest.parameters():
            nn.init.zeros_(value)


@register("child_tuning_d")
class ChildTuningD:
    """θ = θ₀ + scatter(idx, v), idx the k entries of largest F = Σ_B clip(∂loss(B)/∂θ)², v (k) zero at init.

    Xu et al. 2021, arXiv:2109.05687, the task-driven variant. F is measured at θ₀ with the fresh head in one
    pass over the training rows, with the backbone's dropout. Its gradients are those of whole batches, where
    `fish_mask` has one for each example, and each tensor's is clipped to the norm `clip`. The k largest of
    all entries inside the layers are the child network, fixed from then on. The authors keep what reaches the
    (1 − p)-quantile, which with ties is more than k. Of equal scores the first ones are kept here.
    `keep` is k, or p: a share of the entries inside the layers (not of the base model). Tuned values are 0.1
    to 0.3.

    What lies outside the layers (embeddings, pooler, the last norm) trains whole, as in the authors' code.
    It is most of what is stored; `rest: frozen` leaves it as it is. Nothing is divided by p. Their weight
    decay pulls every entry towards zero, those outside the mask too. Here it pulls the trained ones towards
    θ₀, and no other. Mergeable. k parameters (and k indices, which are storage), and those of the rest.
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
        keep: int | str = Field(
            default="30%", description="a share of the layers' entries such as '30%', or a count such as '3M'"
        )
        rest: Literal["trained", "frozen"] = Field(
            default="trained", description="what happens to the backbone outside its layers"
        )
        clip: float = Field(
            default=1.0, ge=0, description="norm of each tensor's gradient in F; 0 leaves it alone"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def _inside(self, spec: BackboneSpec) -> list[TensorSpec]:
        found = [t for t in spec.tensors if t.layer is not None]
        if not found:
            raise MethodError(f"child_tuning_d finds no layers in {spec.family!r}; use fish_mask.")
        return found

    def _rest(self, spec: BackboneSpec) -> list[TensorSpec]:
        return [t for t in spec.tensors if t.layer is None and self.config.rest == "trained"]

    def _k(self, spec: BackboneSpec) -> int:
        tensors = self._inside(spec)
        return self.config.count("child_tuning_d", tensors, spec, whole=sum(t.size for t in tensors))

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self._k(spec) + sum(t.size for t in self._rest(spec))
        return ParameterCount(n, n)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """Scores of the layers' entries and the gradient of a batch."""
        return Interim(held=2 * sum(t.size for t in self._inside(spec)))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return ChildModule(self._inside(spec), self._k(spec), self._rest(spec), self.config)
