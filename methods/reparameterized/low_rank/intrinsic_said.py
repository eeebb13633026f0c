"""Intrinsic SAID: structure-aware intrinsic dimension."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError, near
from autopeft.method import MethodConfig, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import Fastfood
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["IntrinsicSAID"]


class SAIDModule(nn.Module):
    """One vector z for all tensors, and a scale λ for each."""

    def __init__(self, tensors: Sequence[TensorSpec], config: IntrinsicSAID.Config) -> None:
        super().__init__()
        dimension = config.dimension - len(tensors)
        self.z = nn.Parameter(torch.zeros(dimension))
        self.scales = nn.Parameter(torch.ones(len(tensors)))
        self.projections = {t.name: Fastfood(t.size, dimension, config.seed, t.name) for t in tensors}
        self.number = {t.name: i for i, t in enumerate(tensors)}
        self.reference_grad = config.reference_grad

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"z": [self.z], "scales": [self.scales]}

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.projections]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        name = str(target.tensor)
        scale = self.scales[self.number[name]]
        delta = self.projections[name](self.z, scale, reference_grad=self.reference_grad)
        return current + delta.view(current.shape).to(current.dtype)


@register("intrinsic_said")
class IntrinsicSAID:
    """θ_t = θ₀_t + λ_t·reshape(F_t(z)) for every tensor t of the backbone; one z and the scalars λ train.

    Aghajanyan et al. 2021, arXiv:2012.13255, §3 (SAID). F_t is the Fastfood transform of
    `autopeft.nn.Fastfood`: frozen, drawn for each tensor from `seed` and the tensor's name, neither saved nor
    made as a matrix. A tensor with fewer entries than z (padded to a power of two) sees the first of them. z
    starts at zero, λ at one: the identity at init. λ scales a change, and decays towards zero as z does.

    `tensors` chooses: site names, or patterns of tensor names (`encoder.layer.*`). A step costs what full
    fine-tuning costs, and two transforms of every tensor; large embeddings take the most, and are made whole
    even if few rows are read. The frozen draws take 4 to 12 bytes in memory for each entry of the tensors.

    Gradients are true ones. In the authors' code each of the two Hadamard steps divides its backward by √n,
    so that the gradient of z through a tensor padded to n entries is 1/n of the true one; `reference_grad`
    brings that back (under Adam the common size cancels, and large tensors count less). z wants a large
    learning rate: the authors take 3e-2. Their z is one entry shorter than here.

    Mergeable. `dimension` parameters in all: a λ for each of T tensors, and dimension − T entries of z.
    """

    traits = Traits(ways=frozenset({"weight"}), level="model", mergeable=True, gateable=False)
    size_field: ClassVar[str] = "dimension"
    part_names = ("z", "scales")
    frozen_by = ("seed", "tensors")

    class Config(MethodConfig):
        dimension: int = Field(default=5000, ge=2, le=1 << 24, description="entries of z and λ together")
        tensors: tuple[str, ...] | None = Field(
            default=None, min_length=1, description="site names or patterns of tensor names; default: all"
        )
        seed: int = Field(
            default=0, ge=0, lt=2**32, description="where the frozen projections are drawn from"
        )
        reference_grad: bool = Field(
            default=False, description="1/n of the gradient of z, as the authors' code"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def _tensors(self, spec: BackboneSpec) -> list[TensorSpec]:
        """The tensors that z moves.

        Raises:
            MethodError: a name in `tensors` fits nothing, or `dimension` is too small for so many tensors.
        """
        wanted = self.config.tensors or ("*",)
        for name in wanted:
            if not any(_fits(t, name) for t in spec.tensors):
                sites = sorted({t.site for t in spec.tensors if t.site})
                known = [*sites, *(t.name for t in spec.tensors)]
                raise MethodError(
                    f"intrinsic_said finds no tensor {name!r} in {spec.family!r}.{near(name, known)} Name "
                    f"sites ({', '.join(sites)}) or patterns of names such as {known[-1]!r}."
                )
        chosen = [t for t in spec.tensors if any(_fits(t, name) for name in wanted)]
        if self.config.dimension <= len(chosen):
            raise MethodError(
                f"intrinsic_said has a scale for each of {len(chosen)} tensors of {spec.family!r}, so a "
                f"dimension of {self.config.dimension} leaves nothing for z; raise it above {len(chosen)}, "
                "or name fewer `tensors`."
            )
        return chosen

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        self._tensors(spec)
        return ParameterCount(self.config.dimension, self.config.dimension)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return SAIDModule(self._tensors(spec), self.config)


def _fits(tensor: TensorSpec, wanted: str) -> bool:
    return tensor.site == wanted or fnmatchcase(tensor.name, wanted)
