"""Gates: what a block adds is multiplied by the probability that it is kept, which is learnt beside its
weights.

After S³PET (Hu et al. 2022, arXiv:2206.07382) with one level: both come from one backward pass of the same
rows, which are held-out rows for the structure as long as they are new. Gates are soft and without noise: z =
p. Between a forward and its backward the tensors that a block is linear in (`linear_in`) stand at neutral +
z·(value − neutral), so that no forward knows of gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from autopeft.hybrid import Hybrid
from autopeft.hybrid.policies import Policies
from autopeft.method import OuterStep, get_method
from autopeft.method.narrowing import named_so
from autopeft.nn.budgeted import budgeted_sigmoid
from autopeft.recipe import Recipe
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.optimizer import PhaseOptimizer

__all__ = ["Gates", "Gating", "cut", "linear_in_of", "trained_names"]

_REACH = 6.0
"""How far a logit moves that all gradients push one way: from a probability of ¼ to one of 0.99 or 0.001."""


_HELD_OUT = 0.2


@dataclass(frozen=True)
class Gating:
    """What is gated.

    Attributes:
        group_of: the group of each gated entry, by the entry's name. A group has one probability.
        sizes: deployed parameters of each group.
        budget: the sum of sizes times probabilities.
        first, last: the steps between which the probabilities are learnt. Before, when blocks add nothing
            yet, all are equal; then they stay.
        new: steps whose rows no step has seen before: for the probabilities their gradient is one of held-out
            rows. After them every other step takes a gradient of rows that are held out.
        held_out: the share of rows that are held out, where the new steps are too few.
    """

    group_of: Mapping[str, int]
    sizes: tuple[int, ...]
    budget: float
    first: int
    last: int
    new: int
    held_out: float = 0.0

    @classmethod
    def over(cls, rows: int, batch: int, gating: Gating) -> Gating:
        """The same for so many rows of a training, in batches of that many."""
        if rows // batch >= gating.last:
            return replace(gating, new=rows // batch, held_out=0.0)
        return replace(gating, new=int(rows * (1 - _HELD_OUT)) // batch, held_out=_HELD_OUT)

    def learns(self, step: int) -> bool:
        """Whether probabilities are learnt at a step."""
        return self.first <= step < self.last and (step < self.new or (step - self.new) % 2 == 0)


class _Factor(NamedTuple):
    """A tensor of an entry that is multiplied by a gate."""

    parameter: nn.Parameter
    neutral: float
    group: int


class Gates:
    """Multiplies blocks by their probabilities while they train, and learns the probabilities: a policy of
    the training loop.

    Attributes:
        logits: of the groups, α.
        history: the groups' probabilities at each step.
        held_out: the share of rows that are held out.
    """

    def __init__(self, recipe: Recipe, gating: Gating) -> None:
        self._gating, self._linear = gating, linear_in_of(recipe)
        self.logits = nn.Parameter(torch.zeros(len(gating.sizes), dtype=torch.float64))
        self._sizes = torch.tensor(gating.sizes, dtype=torch.float64)
        self._factors: list[_Factor] = []
        self._values: list[Tensor] = []
        self._step, self._slopes = 0, cast(Tensor | None, None)
        self.held_out = gating.held_out
        self.history: list[list[float]] = []

    def probabilities(self) -> Tensor:
        """p of each group."""
        return budgeted_sigmoid(self.logits, self._sizes, self._gating.budget)

    def adjust(self, groups: list[dict[str, Any]], modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
        """With a group for the logits."""
        self._factors = [
            _Factor(parameter, neutral, group)
            for name, group in self._gating.group_of.items()
            for key, parameter in modules[name].named_parameters()
            for own, neutral in self._linear[name].items()
            if named_so(own, key)
        ]
        rate = _REACH / max(1, sum(map(self._gating.learns, range(self._gating.last))))
        own = {"name": "gates", "lr": rate, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}
        return [*groups, {**own, "clip": "group", "params": [self.logits]}]

    @torch.no_grad()
    def before_step(self, groups: Any, step: int, total: int) -> None:
        """Gate the blocks."""
        gates = self.probabilities().tolist()
        self.history.append(gates)
        self._values = [parameter.detach().clone() for parameter, _, _ in self._factors]
        for parameter, neutral, group in self._factors:
            parameter.sub_(neutral).mul_(gates[group]).add_(neutral)
        self._step, self._slopes = step, None

    def outer(self, step: OuterStep) -> None:
        """The probabilities' gradient from rows that are held out, where those of the step are no news."""
        if self._step >= self._gating.new and self._gating.learns(self._step):
            self._slopes = self._slopes_of(step.upper([parameter for parameter, _, _ in self._factors]))

    @torch.no_grad()
    def after_backward(self, groups: Any, step: int, total: int) -> None:
        """The blocks as they were, with the gradients of what was gated; and the logits' own."""
        if self._slopes is None:
            self._slopes = self._slopes_of([parameter.grad for parameter, _, _ in self._factors])
        for (parameter, _, group), value in zip(self._factors, self._values, strict=True):
            parameter.copy_(value)
            if parameter.grad is not None:
                parameter.grad.mul_(self.history[-1][group])
        self._values = []
        if self._gating.learns(step):
            with torch.enable_grad():
                self.probabilities().backward(self._slopes.to(self.logits))

    def _slopes_of(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The derivative of a loss by each group's gate, from those by what is gated."""
        found = [torch.zeros(()) for _ in self._gating.sizes]
        for (_, neutral, group), value, gradient in zip(self._factors, self._values, gradients, strict=True):
            if gradient is not None:
                found[group] = found[group] + ((value - neutral) * gradient).detach().sum().cpu()
        return torch.stack(found)


def linear_in_of(recipe: Recipe) -> dict[str, Mapping[str, float]]:
    """For each entry of a recipe the tensors that what it adds is linear in, with the value at which they add
    nothing; empty where no gate can act."""
    return {
        entry.name: getattr(get_method(entry.method)(entry.item.method_config()), "linear_in", {})
        for entry in recipe.entries()
    }


def trained_names(hybrid: Hybrid) -> list[str]:
    """Names of what a training of the hybrid's recipe trains, in its optimizer's order."""
    names = {id(p): f"module.{name}" for name, p in hybrid.root.named_parameters()}
    names |= {id(p): f"head.{name}" for name, p in hybrid.head().items()}
    groups = Policies(hybrid.recipe.training).adjust(hybrid.parameter_groups(), hybrid.trained_modules)
    optimizer = PhaseOptimizer(groups, hybrid.recipe.training, 1, hybrid.trained_modules.values())
    return [names[id(p)] for p in optimizer.parameters]


def cut(
    checkpoint: Checkpoint,
    trained: Sequence[str],
    hybrid: Hybrid,
    origin: Mapping[str, str],
    gates: Mapping[str, float],
) -> Checkpoint:
    """The checkpoint of a hybrid as one of a smaller hybrid, with the gates multiplied into its weights.

    Each tensor is the leading part of what it was, and so are its moments in the optimizer. Where a gate z
    has gone into a tensor its gradient is 1/z times what it was, and so are the moments.

    Args:
        trained: what the large hybrid trained (`trained_names`).
        hybrid: the small one, attached. What it has and the large one lacks stays as it starts.
        origin: for each of its entries the name that it had in the large one.
        gates: z of entries of the large one.
    """
    linear, old = linear_in_of(hybrid.recipe), checkpoint.tensors
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in old.items():
        if key.startswith("optimizer."):
            _, index, kind = key.split(".", 2)
            # Behind them stand the logits.
            if int(index) < len(trained):
                state.setdefault(trained[int(index)], {})[kind] = value

    def source(name: str) -> str:
        part, entry, rest = name.split(".", 2)
        return f"module.{origin.get(entry, entry)}.{rest}" if part == "module" else name

    def gate(name: str) -> tuple[float, float] | None:
        """The gate in a tensor, and the tensor's neutral value."""
        part, entry, rest = name.split(".", 2)
        z = gates.get(origin.get(entry, entry)) if part == "module" else None
        found = (neutral for own, neutral in linear.get(entry, {}).items() if named_so(own, rest))
        neutral = next(found, None)
        return None if z is None or neutral is None else (z, neutral)

    found = {key: value for key, value in old.items() if key.startswith(("generator.", "head."))}
    kept = set[str]()
    for key, value in hybrid.root.state_dict().items():
        name = f"module.{key}"
        part = _leading(old.get(source(name)), value)
        if part is None:
            found[name] = value.detach().cpu().clone()
            continue
        kept.add(name)
        if (acting := gate(name)) is not None:
            part = (part - acting[1]) * acting[0] + acting[1]
        found[name] = part.contiguous().clone()
    for position, name in enumerate(trained_names(hybrid)):
        if name in kept or name.startswith("head."):
            acting = gate(name)
            for kind, moment in state.get(source(name), {}).items():
                part = _leading(moment, found[name]) if moment.ndim else moment
                if part is not None and acting is not None:
                    part = part / acting[0] ** {"exp_avg": 1, "exp_avg_sq": 2}.get(kind, 0)
                if part is not None:
                    found[f"optimizer.{position}.{kind}"] = part.contiguous().clone()
    return replace(checkpoint, tensors=found)


def _leading(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """The leading part of a tensor that has another's shape; `None` where it has none."""
    if (
        tensor is None
        or tensor.ndim != like.ndim
        or any(a < b for a, b in zip(tensor.shape, like.shape, strict=True))
    ):
        return None
    return tensor[tuple(slice(n) for n in like.shape)]
