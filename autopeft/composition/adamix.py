"""`adamix`: copies of a part of its child, drawn at random while training and averaged for use."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.composition.contract import ChildSpec, CompositionOptions, CompositionTraits, Value
from autopeft.composition.registry import register
from autopeft.composition.wrap import Wrap
from autopeft.errors import CompositionError
from autopeft.method import LossStep, ParameterCount, parts_of
from autopeft.spec import Site

__all__ = ["AdaMix"]


class AdaMixOptions(CompositionOptions):
    """See `autopeft.composition.adamix`."""

    copies: int = Field(default=4, ge=2, le=16, description="E")
    copied: Literal["down", "up", "both"] = Field(
        default="down", description="the parts of the child that have copies; others are shared"
    )
    init: Literal["drawn", "equal"] = Field(
        default="drawn", description="each copy is drawn as the child is, or all begin with its values"
    )
    consistency: float = Field(default=1.0, ge=0, le=1000, description="factor of the consistency term")


@register("adamix")
class AdaMix(Wrap):
    """δ(θ̄) once trained, θ̄ the mean of E copies of a part of its child; while training δ with one of the
    copies, drawn at random.

    Wang et al. 2022, arXiv:2205.12410 (AdaMix). `copied` says what has copies: an adapter's or a LoRA's
    `down`, as published, its `up`, or both; other parts are shared. While training, each site draws one copy
    of each part in each forward, with equal chances and for all rows, and computes with that one alone. In
    eval mode, and when merged, the child computes with the mean of the copies. That mean is what is saved and
    exported: the deployed hybrid has one adapter or one LoRA and no copies. Mergeable where the child is.

    `consistency` is the factor of a term of the loss: ½·[KL(q‖p) + KL(p‖q)] between the answers p of this
    forward and q of a second one of the same rows, with copies and dropout drawn anew; the first argument of
    each KL has no gradient. It is the mean over what the task's loss counts: rows, words, or the tokens that
    are learnt. Labels that do not exclude each other are compared one by one, the ends of an answer over the
    positions of its text. Of a task with one logit, such as regression, the term is 0. A step takes two
    forwards; 0 leaves the second one out. For GPT-2 the authors take 100 (and 1 for classification). Where a
    recipe has several `adamix`, each adds a term and a forward of its own: give `consistency: 0` to all but
    one.

    `init: drawn` gives each copy first values of its own, as the child draws them: what is published for
    adapters. With `equal` all copies begin with the child's first values, as in the authors' code for LoRA.
    They do so too where the child takes its first values from an input (`from:`). Copies train with the
    settings of the child and of its parts. A copy that a step does not draw has no gradient, and the
    optimizer leaves it and its moments as they are. In the authors' code, with the PyTorch of its time,
    momentum and weight decay go on; their files hold all copies, which each evaluation averages anew. Draws
    are of torch's global generator on the CPU, whatever the device, and recomputation under checkpointing
    draws the same again. Rows that go through the model in parts draw for each part, as dropout does.

    (E − 1) times the parameters of the copied parts more in training, none deployed.
    """

    summary: ClassVar[str] = "copies of a part of its child, drawn at random in training, averaged for use"
    traits: ClassVar[CompositionTraits] = CompositionTraits(
        additive=True, mergeable=True, rowwise=True, single=True, stochastic=True
    )
    Options = AdaMixOptions

    def __init__(self, child: ChildSpec, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.copies_of, self.init = child.name, options["init"]
        self.consistency = float(options["consistency"])
        self._part: dict[str, str] = {}  # of each parameter of the child that has copies, by name
        self._up: set[str] = set()
        self.further = nn.ModuleList()  # the child's own parameters are the first copy
        assert child.build is not None
        for _ in range(options["copies"] - 1):
            module: Any = child.build()
            found = parts_of(module)
            part = {id(p): name for name in _parts(options) for p in found[name]}
            own = {name: p for name, p in module.named_parameters() if id(p) in part}
            self._part = {name: part[id(p)] for name, p in own.items()}
            up = {id(p) for p in getattr(module, "up_parameters", list)()}
            self._up = {name for name, p in own.items() if id(p) in up}
            self.further.append(nn.ParameterDict({_key(name): p for name, p in own.items()}))

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().check(children, options)
        (child,) = children
        size = child.part_size
        if size is None:
            raise CompositionError(
                f"{child.label} does not say how large its parts are at a site (`part_size`), so that no "
                "copies of them could be counted; give adamix one entry of lora, serial_adapter, "
                "parallel_adapter or linear_adapter."
            )
        for part in _parts(options):
            if any(size(site, part) is None for site in child.sites):
                raise CompositionError(
                    f"{child.label} has no part {part!r} of which each site has its own; give `copied` "
                    "another of down, up and both, or adamix another child."
                )
        if child.frozen:
            raise CompositionError(
                f"{child.label} is frozen, and adamix trains copies of its parts; leave `frozen: true` out, "
                "or adamix."
            )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        (child,) = children
        assert child.part_size is not None
        own = sum(child.part_size(site, part) or 0 for part in _parts(options) for site in child.sites)
        return ParameterCount(0, (options["copies"] - 1) * own)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> AdaMix:
        return cls(children[0], options)

    @torch.no_grad()
    def start(self, modules: Mapping[str, nn.Module], given: Collection[str]) -> None:
        """Let the copies begin with the child's values, where these are not to be drawn."""
        child = modules[self.copies_of]
        if self.init == "equal" or self.copies_of in given:
            for name in self._part:
                for other in self._others(name):
                    other.copy_(child.get_parameter(name))

    def _others(self, name: str) -> list[nn.Parameter]:
        """The further copies of a parameter."""
        return [cast(nn.ParameterDict, copied)[_key(name)] for copied in self.further]

    def values(self, site: Site | None) -> Sequence[Value]:
        if not self.training:
            return [self.mean]
        parts = sorted(set(self._part.values()))
        count = len(self.further) + 1
        return [partial(self._drawn, {p: int(torch.randint(count, (), device="cpu")) for p in parts})]

    def _drawn(self, drawn: Mapping[str, int], name: str, parameter: Tensor) -> Tensor:
        index = drawn[self._part[name]] if name in self._part else 0
        return self._others(name)[index - 1] if index else parameter

    def mean(self, name: str, parameter: Tensor) -> Tensor:
        """The mean of the copies of a parameter of the child; a shared one as it is."""
        return torch.stack([parameter, *self._others(name)]).mean(0) if name in self._part else parameter

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """The consistency term, where two forwards can differ and a gradient is asked for."""
        wanted = self.training and self.consistency and len(self.further) and torch.is_grad_enabled()
        if not wanted or step.logits.shape[-1] == 1:  # one number is no distribution
            return None
        return self.consistency * step.divergence(step.again())

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The further copies, by the child's parts."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, part in self._part.items():
            found.setdefault(part, []).extend(self._others(name))
        return found

    def up_parameters(self) -> list[nn.Parameter]:
        """The further copies of what the child says are its up factors."""
        return [other for name in self._part if name in self._up for other in self._others(name)]

    @torch.no_grad()
    def deployed(self, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The child with the means in its parameters."""
        child = copy.deepcopy(modules[self.copies_of])
        for name, parameter in child.named_parameters():
            parameter.copy_(self.mean(name, parameter))
        return {self.copies_of: child}

    def deploy(self) -> None:
        """Keep no copies: the child has their mean."""
        self.further = nn.ModuleList()
        self._part, self._up = {}, set()


def _parts(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that have copies."""
    return ("down", "up") if options["copied"] == "both" else (options["copied"],)


def _key(name: str) -> str:
    """A parameter's name as a module may have it."""
    return name.replace(".", "/")
