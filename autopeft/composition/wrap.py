"""Compositions that wrap one child: they act as it would with other values in its parameters' places."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.composition.contract import (
    Child,
    ChildSpec,
    CompositionOptions,
    CompositionTraits,
    MergingChild,
    Value,
    refuse_searched,
)
from autopeft.composition.registry import register
from autopeft.composition.sums import added, one_after_the_other
from autopeft.errors import CompositionError
from autopeft.method import Call, ParameterCount, Posterior, WeightTarget
from autopeft.nn import generator_of
from autopeft.spec import Site

__all__ = ["MaskedCopies", "WeightDrop", "Wrap"]


class Wrap(nn.Module):
    """The sum of what its child does with the values of each of `values`.

    The child's parameters stay what trains and what is saved; it computes with what is made of them (see
    `Child.under`).
    """

    kind: ClassVar[str]
    traits: ClassVar[CompositionTraits] = CompositionTraits(mergeable=True, rowwise=True, single=True)
    at_inference: ClassVar[bool] = True
    """Whether values are other ones in eval mode too, and not while training alone."""

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        """One child, which is no prompt, and whose parameters keep their shapes.

        Where values are altered at inference too, they are those that were trained.
        """
        if len(children) != 1:
            raise CompositionError(
                f"{cls.kind} wraps one child, but has {len(children)}; give each a {cls.kind} of its own, or "
                f"put a sum of them into one."
            )
        refuse_searched(cls.kind, children)
        (child,) = children
        if "prompt" in child.ways:
            raise CompositionError(
                f"{child.label} fills rows at the front of the text, outside of any site, where no "
                f"{cls.kind} could reach it; list it beside."
            )
        if child.resizes:
            raise CompositionError(
                f"{child.label} settles how large it is while it trains, so that a {cls.kind} could not tell "
                "which of its entries are which; wrap a method of a fixed size (lora, serial_adapter, …)."
            )
        if child.phased:
            raise CompositionError(
                f"{child.label} trains in phases, in which parameters come and go, so that a {cls.kind} "
                "would miss some; wrap a method without phases (lora, serial_adapter, …)."
            )
        if child.remade and cls.at_inference:
            raise CompositionError(
                f"{child.label} is saved with other parameters than it trains, and a {cls.kind} would alter "
                "those instead once it is loaded; wrap a method that is saved as it trains (lora, "
                "serial_adapter, …)."
            )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        return ParameterCount(0, 0)

    def check_modules(self, modules: Mapping[str, nn.Module]) -> None:
        """Refuse entries none of whose parameters it would alter, and those that tell of the values that
        are trained what no longer holds for others."""
        names = " and ".join(modules)
        if not any(p.ndim >= 2 for module in modules.values() for p in module.parameters()):
            raise CompositionError(
                f"There is no matrix among the parameters of {names}, and {self.kind} alters nothing else; "
                f"leave {self.kind} out, or wrap a method with matrices (lora, serial_adapter, …)."
            )
        uncertain = next((name for name, module in modules.items() if isinstance(module, Posterior)), None)
        if uncertain is not None and self.at_inference:
            raise CompositionError(
                f"{uncertain} has a posterior of the parameters that are trained, and {self.kind} puts "
                "others in their places; list it beside, or wrap a method without one (lora, …)."
            )

    @abstractmethod
    def values(self, site: Site | None) -> Sequence[Value]:
        """The functions that alter the child's parameters, one for each copy of it."""

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        first, *others = (children[0].under(value).delta(x, y, call) for value in self.values(site))
        for other in others:
            first = first + other
        return first

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        for value in self.values(target.site):
            current = children[0].under(value).weight(target, original, current)
        return current

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        return one_after_the_other([children[0].under(v).key_value(x, call) for v in self.values(site)])

    def merged(
        self, site: Site, children: Sequence[MergingChild], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return added([children[0].under(value) for value in self.values(site)], weight, bias)


class MaskedCopiesOptions(CompositionOptions):
    """See `autopeft.composition.wrap`."""

    copies: int = Field(default=2, ge=1, le=16, description="D")
    density: float = Field(default=0.5, gt=0, le=1, description="ρ, the share of ones in each mask")
    seed: int = Field(default=0, ge=0, lt=2**32, description="where the masks are drawn from")


@register("masked_copies")
class MaskedCopies(Wrap):
    """δ = Σᵢ δ(θ ⊙ Mᵢ), i = 1…D: one set of the child's parameters θ in D masked copies (CapaBoost).

    Song et al. 2024, arXiv:2407.01320, on hosts beside LoRA (`capaboost` is the same on LoRA, and leaves out
    the entries in no mask). Each mask of a matrix has ⌊ρ·size⌋ ones at random places, one at least; vectors
    (biases, norms) are not masked, and each copy has them. The masks come from `seed`, stay fixed and are not
    saved; of several entries in one wrap, parameters of one name and shape have the same. The parameters
    counted are the child's, though about (1 − ρ)ᴰ of the entries of matrices are in no mask and keep their
    first values. With D = ρ = 1 it is the child alone. Prefixes are refused: copies of them would be more
    rows, not more rank. So is what is saved with other parameters than it trains (HiWi): the masks would hit
    those. Mergeable where the child is.
    """

    summary: ClassVar[str] = "the sum of masked copies of its child, which share its parameters (CapaBoost)"
    Options = MaskedCopiesOptions

    def __init__(self, copies: int, density: float, seed: int) -> None:
        super().__init__()
        self.copies, self.density, self.seed = copies, density, seed
        self._masks: dict[tuple[str, torch.Size, torch.device], Tensor] = {}

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().check(children, options)
        if "kv" in children[0].ways:
            raise CompositionError(
                f"Copies of {children[0].label} would be more prefixes instead of a richer one; make it "
                "longer, or give masked_copies a method that acts on activations or weights."
            )
        if children[0].directed:
            raise CompositionError(
                f"{children[0].label} replaces the direction of a weight, which has only one for all copies; "
                "give masked_copies a method whose changes add (lora, krona, …)."
            )

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> MaskedCopies:
        return cls(**options)

    def values(self, site: Site | None) -> Sequence[Value]:
        return [partial(self._value, copy) for copy in range(self.copies)]

    def _value(self, copy: int, name: str, parameter: Tensor) -> Tensor:
        return parameter if parameter.ndim < 2 else parameter * self.masks(name, parameter)[copy]

    def masks(self, name: str, parameter: Tensor) -> Tensor:
        """The masks, bool (copies, *shape), of the parameter that the child calls so."""
        key = (name, parameter.shape, parameter.device)
        if key not in self._masks:
            size = parameter.numel()
            kept, generator = max(1, int(self.density * size)), generator_of(self.seed, name)
            with torch.inference_mode(False):  # training reads them too
                masks = torch.zeros(self.copies, size, dtype=torch.bool)
                for mask in masks:
                    mask[torch.randperm(size, generator=generator)[:kept]] = True
                self._masks[key] = masks.view(self.copies, *parameter.shape).to(parameter.device)
        return self._masks[key]


class WeightDropOptions(CompositionOptions):
    """See `autopeft.composition.wrap`."""

    p: float = Field(default=0.1, ge=0, lt=1, description="share of the entries that are left out")


@register("weight_drop")
class WeightDrop(Wrap):
    """δ = δ(θ ⊙ m/(1 − p)) while training, each entry of m 0 with probability p; else δ(θ).

    Merity et al. 2017, arXiv:1708.02182 (DropConnect with one mask for a batch), on the parameters θ of its
    child: a matrix's entries are left out at random, drawn at each call of a site and the same for all rows;
    vectors are not. Mergeable where the child is.
    """

    summary: ClassVar[str] = "entries of its child's matrices are left out at random while training"
    traits: ClassVar[CompositionTraits] = CompositionTraits(
        additive=True, mergeable=True, rowwise=True, single=True, stochastic=True
    )
    Options = WeightDropOptions
    at_inference: ClassVar[bool] = False

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = p

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> WeightDrop:
        return cls(**options)

    def values(self, site: Site | None) -> Sequence[Value]:
        return [self._value]

    def _value(self, name: str, parameter: Tensor) -> Tensor:
        if not self.training or not self.dropout or parameter.ndim < 2:
            return parameter
        return nn.functional.dropout(parameter, self.dropout)
