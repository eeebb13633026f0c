"""Gates: what a block adds is multiplied by the probability that it is kept, which is learnt beside its
weights.

After S³PET (Hu et al. 2022, arXiv:2206.07382) with one level: both come from one backward pass of the same
rows, which are held-out rows for the structure as long as they are new. Gates are soft and without noise: z =
p. Between a forward and its backward the tensors that a block is linear in (`linear_in`) stand at neutral +
z·(value − neutral), so that no forward knows of gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from autopeft.method import OuterStep
from autopeft.method.narrowing import named_so
from autopeft.nn.budgeted import binary_concrete, budgeted_sigmoid
from autopeft.recipe import Recipe
from autopeft.training.shared_weights import linear_in_of

__all__ = ["BilevelGates", "Gates", "Gating"]

_REACH = 6.0
"""How far a logit moves that all gradients push one way: from a probability of ¼ to one of 0.99 or 0.001."""

_HELD_OUT = 0.2
_LOGIT_RATE, _RADIUS = 0.1, 0.01
"""S³PET's learning rate of logits, and how far its finite difference goes."""
_SEEDS = 1_000_003
"""Apart from each other are the draws of two trainings whose seeds are."""


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
        self._factors = self._factors_of(modules)
        rate = _REACH / max(1, sum(map(self._gating.learns, range(self._gating.last))))
        own = {"name": "gates", "lr": rate, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}
        return [*groups, {**own, "clip": "group", "params": [self.logits]}]

    def _factors_of(self, modules: Mapping[str, nn.Module]) -> list[_Factor]:
        return [
            _Factor(parameter, neutral, group)
            for name, group in self._gating.group_of.items()
            for key, parameter in modules[name].named_parameters()
            for own, neutral in self._linear[name].items()
            if named_so(own, key)
        ]

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


class BilevelGates(Gates):
    """Gates drawn at random whose logits are learnt by a level above the weights', as S³PET does it.

    Hu et al. 2022, arXiv:2206.07382; the steps are those of the authors' code. z is drawn anew from the
    binary concrete distribution. In each step, and with the same z: the weights take a step aside on the
    rows of the step, w′; the loss of held-out rows at w′ gives ∂L₂/∂α and ∂L₂/∂w′; with w± = w ± ε·∂L₂/∂w′
    and ε = 0.01/(‖∂L₂/∂w′‖ + 1e-6), the gradient of α is ∂L₂/∂α − η·[∂L₁(w⁺)/∂α − ∂L₁(w⁻)/∂α]/2ε, where η
    is the weights' learning rate. AdamW moves α by it, at a rate of 0.1 that falls to 0. Then the weights
    take their own step on the same rows with another z. What is scored on the way has z = p.

    Args:
        seed: of the draws of z, which are the same on every device.
    """

    def __init__(self, recipe: Recipe, gating: Gating, *, seed: int) -> None:
        super().__init__(recipe, gating)
        self._limit = recipe.training.max_grad_norm or float("inf")
        self._seed = seed
        self._optimizer = torch.optim.AdamW([self.logits], lr=_LOGIT_RATE, weight_decay=0.0)
        self._total = 1
        self._z: list[float] = []
        self._draws = torch.Generator()

    def probabilities(self) -> Tensor:
        """p of each group, with the derivative of the authors' code."""
        return budgeted_sigmoid(self.logits, self._sizes, self._gating.budget, jacobian="reference")

    def adjust(self, groups: list[dict[str, Any]], modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
        """As they are: the logits have an optimizer of their own."""
        self._factors = self._factors_of(modules)
        return groups

    def before_step(self, groups: Any, step: int, total: int) -> None:
        """Ungate what the score of the last step was taken with."""
        self._ungate()
        self._step, self._total = step, total
        self._draws.manual_seed(self._seed * _SEEDS + step)

    def outer(self, step: OuterStep) -> None:
        """Learn the probabilities, then gate the blocks for the step of the weights."""
        lower = step.parameters
        start = [parameter.detach().clone() for parameter in lower]
        place = {id(parameter): i for i, parameter in enumerate(lower)}
        factors = {place[id(factor.parameter)]: factor for factor in self._factors}
        z = self._drawn(self.probabilities())

        @torch.no_grad()
        def derivatives(
            loss: Callable[[Sequence[nn.Parameter]], list[Tensor]], weights: Sequence[Tensor]
        ) -> tuple[list[Tensor], Tensor]:
            """Of a loss, by weights without gates and by each group's gate."""
            gates = z.detach().tolist()
            for i, (parameter, weight) in enumerate(zip(lower, weights, strict=True)):
                parameter.copy_(_gated(weight, factors[i], gates) if i in factors else weight)
            found, slopes = loss(lower), torch.zeros_like(self.logits)
            for i, (_, neutral, group) in factors.items():
                slopes[group] += ((weights[i] - neutral) * found[i]).sum().to(slopes)
                found[i] = found[i] * gates[group]
            for parameter, begin in zip(lower, start, strict=True):
                parameter.copy_(begin)
            return found, slopes

        aside = step.ahead(derivatives(step.lower, start)[0])
        direction, direct = derivatives(step.upper, aside)
        norm = float(torch.stack([g.float().square().sum() for g in direction]).sum().sqrt())
        reach = _RADIUS / (norm + 1e-6)
        ahead, behind = (
            derivatives(step.lower, [w + sign * reach * g for w, g in zip(start, direction, strict=True)])[1]
            for sign in (1.0, -1.0)
        )
        z.backward(direct - max(step.rates) * (ahead - behind) / (2 * reach))

        nn.utils.clip_grad_norm_([self.logits], self._limit)
        self._optimizer.param_groups[0]["lr"] = _LOGIT_RATE * (1 - self._step / self._total)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            p = self.probabilities()
            self.history.append(p.tolist())
            self._gate(self._drawn(p).tolist())

    def after_backward(self, groups: Any, step: int, total: int) -> None:
        """The blocks as they were, with the gradients of what was gated."""
        self._ungate()
        for parameter, _, group in self._factors:
            if parameter.grad is not None:
                parameter.grad.mul_(self._z[group])

    def after_step(self, groups: Any, step: int, total: int) -> None:
        """Gate the blocks by their probabilities, for a score."""
        self._gate(self.history[-1])

    def _drawn(self, p: Tensor) -> Tensor:
        return binary_concrete(p, torch.rand(p.shape, dtype=p.dtype, generator=self._draws))

    @torch.no_grad()
    def _gate(self, z: list[float]) -> None:
        self._z = z
        self._values = [parameter.detach().clone() for parameter, _, _ in self._factors]
        for factor in self._factors:
            factor.parameter.copy_(_gated(factor.parameter, factor, z))

    @torch.no_grad()
    def _ungate(self) -> None:
        for factor, value in zip(self._factors, self._values, strict=False):
            factor.parameter.copy_(value)
        self._values = []


def _gated(value: Tensor, factor: _Factor, z: Sequence[float]) -> Tensor:
    return (value - factor.neutral) * z[factor.group] + factor.neutral
