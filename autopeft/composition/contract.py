"""The contract of compositions: children that act together at a site.

A composition is an `nn.Module` (most have no parameters) with one fold for each way in. Its children are
`Child` objects: a method's module bound to the site, or another composition. A fold returns what a single
module would: a delta, keys and values, or a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from autopeft.errors import CompositionError
from autopeft.method import Call, ParameterCount, Way, WeightTarget
from autopeft.spec import Site

__all__ = [
    "Child",
    "ChildSpec",
    "Composition",
    "CompositionOptions",
    "CompositionTraits",
    "MergingChild",
    "NoOptions",
    "Value",
    "Way",
    "alters_weights",
    "by_site",
    "check_learn_together",
    "input_width",
    "mixed",
    "nested",
    "refuse_alone",
    "refuse_searched",
    "require_gradient",
]

Value = Callable[[str, Tensor], Tensor]
"""(name in the child, parameter) → the tensor of the same shape that takes the parameter's place."""


class CompositionOptions(BaseModel):
    """Base of a composition's options. Each has a default: a recipe may give the children alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class NoOptions(CompositionOptions):
    """It has none."""


@dataclass(frozen=True)
class CompositionTraits:
    """The declarations of a composition.

    Attributes:
        ordered: the order of its children matters. Of others, recipes that differ in it alone are the same.
        additive: once deployed, it does what listing its children side by side does.
        mergeable: it can be folded into the backbone's weights where its children can; it has `merged`.
        rowwise: what it adds at a position depends on that position alone, where that is so of its children.
        copies: its only child may be written once, with `copies: n` beside it.
        single: it holds one child.
        several: it holds two children or more. Of a space's, one that is left alone stands for it.
        for_each_task: it holds a child for each task of a set, or one of which each task gets a copy.
        stochastic: it draws random numbers while training, once for all rows of a forward.
        batch_terms: the option that, where it is not zero, gives a term of the loss that is of the rows of a
            batch together, and no mean over rows.
    """

    ordered: bool = False
    additive: bool = False
    mergeable: bool = False
    rowwise: bool = False
    copies: bool = False
    single: bool = False
    several: bool = False
    for_each_task: bool = False
    stochastic: bool = False
    batch_terms: str = ""


class Child(Protocol):
    """A child at one site (see `HookModule`, `WeightModule` and `KeyValueModule` for shapes)."""

    name: str

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor: ...

    def reads(self, x: Tensor, y: Tensor, call: Call) -> Tensor: ...

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor: ...

    def key_value(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]: ...

    def under(self, value: Value) -> Child:
        """The child as it is with other values in its parameters' places."""
        ...


class MergingChild(Protocol):
    """A child at one linear site or norm, while it is folded into the weights (see `Merges`)."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """The new weight and bias; `None` where it leaves them alone."""

    def under(self, value: Value) -> MergingChild:
        """See `Child`."""
        ...


def input_width(site: Site) -> int:
    """The width of a child's input at a site, unless it says otherwise."""
    return site.in_features


@dataclass(frozen=True)
class ChildSpec:
    """A child as its composition sees it before anything is built.

    Attributes:
        name: the entry's or the inner composition's name.
        label: how messages call it (`lora`, `gate(lora, bitfit)`).
        ways: how it acts.
        sites: where.
        pretrained: it reads pretrained tensors and nothing else in their place (see `Traits`).
        phased: how many entries in it train in phases of their own.
        resizes: an entry in it settles how large it is while it trains.
        directed: an entry in it replaces the direction of a weight (DoRA).
        remade: an entry in it has other parameters once it is deployed (see `Traits`).
        fed: the width of what it reads at a site, its input's unless the method says otherwise (`fed_width`).
        frozen: it is an entry that does not train.
        searched: an entry in it is zero until all else has trained (see `Traits`).
        part_size: of an entry whose method says it, how many parameters a part has at a site, `None` for a
            part that lies at no single site.
        build: of an entry, makes its module anew, with first values of its own. It is there when the
            composition is built.
    """

    name: str
    label: str
    ways: frozenset[Way]
    sites: tuple[Site, ...] = field(default=())
    pretrained: bool = False
    phased: int = 0
    resizes: bool = False
    directed: bool = False
    remade: bool = False
    fed: Callable[[Site], int] = input_width
    frozen: bool = False
    part_size: Callable[[Site, str], int | None] | None = None
    build: Callable[[], nn.Module] | None = None
    searched: bool = False


def by_site(children: Sequence[ChildSpec]) -> tuple[dict[str, Site], dict[str, list[str]]]:
    """Every site, and the names of the children that sit there, in their order; both by the site's key."""
    sites = {s.key: s for c in children for s in c.sites}
    return sites, {k: [c.name for c in children if any(s.key == k for s in c.sites)] for k in sites}


def mixed(
    weights: Tensor, order: Sequence[str], children: Sequence[Child], x: Tensor, y: Tensor, call: Call
) -> Tensor:
    """Σₑ wₑ·δₑ over the children that act here, with weights (…, experts) in the order of their names."""
    terms = []
    for child in children:
        index = order.index(child.name)
        terms.append(weights[..., index : index + 1] * child.delta(x, y, call))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def nested(outer: Value | None, inner: Value) -> Value:
    """The values of a wrap within another: what the inner one makes of a parameter, the outer one alters."""
    return inner if outer is None else lambda name, parameter: outer(name, inner(name, parameter))


def refuse_alone(kind: str, children: Sequence[ChildSpec]) -> None:
    """Check that a composition holds nothing on logits, which are no site where its children would meet,
    nothing on scores, for which it has no fold, and nothing that takes a region's place, where nothing else
    could be.

    Raises:
        CompositionError: a child acts so.
    """
    whole = next((child.label for child in children if "region" in child.ways), None)
    if whole is not None:
        raise CompositionError(
            f"{whole} takes the place of a whole layer, and no {kind} holds such a method: list it by "
            "itself; what acts inside of the layer stands beside it."
        )
    scoring = next((child.label for child in children if "scores" in child.ways), None)
    if scoring is not None:
        raise CompositionError(
            f"{scoring} acts on the scores of an attention, and no {kind} holds such a method: list it by "
            "itself, where what several of them add is summed."
        )
    wrong = next((child.label for child in children if "logits" in child.ways), None)
    if wrong is not None:
        raise CompositionError(
            f"{wrong} acts on logits, and no {kind} holds such a method: list it under 'model:' by itself, "
            "where what several of them add is summed."
        )


def alters_weights(kind: str, child: ChildSpec) -> CompositionError:
    """Why a composition that depends on the input cannot hold this child."""
    way_out = (
        f"list it beside the {kind}, or {kind} modules that act on activations (lora, serial_adapter, …)"
    )
    if "hook" in child.ways:
        way_out = (
            "switch that off (`outer: false` for ssf, `train_norms: false` for compacter), or " + way_out
        )
    return CompositionError(
        f"A {kind} depends on the input, but {child.label} alters weights, which are the same for every "
        f"example; {way_out}."
    )


def refuse_searched(kind: str, children: Sequence[ChildSpec]) -> None:
    """Check that what a composition learns to use, or alters while it trains, is there by then.

    Raises:
        CompositionError: a child is found once all else has trained.
    """
    for child in children:
        if child.searched:
            raise CompositionError(
                f"{child.label} has parameters that are zero until all else has trained, so that {kind} has "
                f"nothing to act on; list it beside the {kind}, or take a method that trains (lora, …)."
            )


def check_learn_together(kind: str, children: Sequence[ChildSpec]) -> None:
    """Check that children that are mixed train at the same time.

    Raises:
        CompositionError: several train in phases of their own, or one is found once all else has trained.
    """
    refuse_searched(kind, children)
    phased = [child.label for child in children if child.phased]
    if len(phased) > 1:
        raise CompositionError(
            f"The children of a {kind} learn together, but {' and '.join(phased)} train in phases of their "
            f"own, one after the other; have one of them in the {kind}, or list them beside it."
        )


def require_gradient(what: str) -> None:
    """Check that a term of the loss that is made in this forward gets a gradient.

    Raises:
        CompositionError: it gets none.
    """
    if not torch.is_grad_enabled():
        raise CompositionError(
            f"{what} gets no gradient here: under reentrant checkpointing use use_reentrant=False, or "
            "`balance: 0`; to predict, call model.eval() first."
        )


class Composition(Protocol):
    """The contract of `sum`, `chain`, `gate`, `route` and what comes after them.

    It may take part in the events of the training loop, as a method's module does. `options` are those of the
    recipe's item, complete.

    Some members are optional. `check_modules(modules)` looks at the modules of the entries under it once
    they are built, by name, and raises CompositionError where it cannot hold them. `merged(site, children,
    weight, bias)`, which `traits.mergeable` asks for, gives the new weight and bias of a linear site or a
    norm, from `MergingChild` objects. `pools(site)` is whether it looks at the sequence there as a whole, so
    that it refuses a decoding step from a cache; texts are then written without one.

    A composition whose parameters are further copies of an entry's says so by `copies_of`, the entry's name:
    they then train with the settings of that entry and of its parts (see `parts`). `start(modules, given)`
    is called at attach, when all modules (by name) have their first values; `given` are the names of the
    entries that got theirs from an input. `deployed(modules)` gives the modules under it, by name, that are
    deployed with other values than they train with, as copies; its own `deploy()` drops what only training
    needs.

    Attributes:
        kind: its name in recipes; `register` sets it.
        summary: what it does, in a line.
        traits: see `CompositionTraits`.
        Options: the model of its options.
    """

    kind: ClassVar[str]
    summary: ClassVar[str]
    traits: ClassVar[CompositionTraits]
    Options: ClassVar[type[CompositionOptions]]

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        """Raise CompositionError where these children cannot act together, saying why and what would work."""
        ...

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount: ...

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> nn.Module: ...

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor: ...

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor: ...

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]: ...
