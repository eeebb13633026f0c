"""The portfolio's recipes on a backbone and under a budget, ranked by what the evidence lets one expect."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

from autopeft.counting import Budget
from autopeft.graph import build_graph, unservable
from autopeft.recipe.pooling import Pooling, pooled
from autopeft.search.portfolio.estimates import Estimate, Target, estimates
from autopeft.search.portfolio.evidence import Evidence, Key, reference_of
from autopeft.search.portfolio.templates import FittedRecipe, fitted, templates
from autopeft.spec import BackboneSpec

__all__ = ["Choice", "Ranking", "members", "rank"]


@dataclass(frozen=True)
class Choice:
    """A recipe of the portfolio with what is known of it.

    Attributes:
        fitted: the recipe at the size that the budget allows.
        estimate: of its gain over plain LoRA; `None` for plain LoRA itself, and where there is no evidence.
        cost: time of a training step over that of plain LoRA, where it was measured.
    """

    fitted: FittedRecipe
    estimate: Estimate | None
    cost: float | None

    @property
    def key(self) -> Key:
        """Its template and rate."""
        return Key(self.fitted.template, self.fitted.rate)


@dataclass(frozen=True)
class Ranking:
    """The portfolio for a backbone, a budget and a number of rows.

    Attributes:
        choices: best first; plain LoRA stands where its merit of zero puts it. Recipes without evidence are
            not among them.
        reference: plain LoRA, at the rate that gains are over; `None` where none fits.
        reason: why plain LoRA is first, or why nothing is; `None` where another recipe is first.
    """

    choices: tuple[Choice, ...]
    reference: Choice | None
    reason: str | None

    @property
    def known(self) -> bool:
        """Whether there is evidence to rank by: of any recipe beside plain LoRA."""
        return any(choice.estimate is not None for choice in self.choices)

    def pooled(self, pooling: Pooling) -> Ranking:
        """The same with heads that read so."""

        def read(choice: Choice) -> Choice:
            recipe = pooled(choice.fitted.recipe, pooling)
            return replace(choice, fitted=replace(choice.fitted, recipe=recipe))

        first = None if self.reference is None else read(self.reference)
        return Ranking(tuple(map(read, self.choices)), first, self.reason)


def members(spec: BackboneSpec, budget: Budget) -> list[FittedRecipe]:
    """The portfolio's recipes that a budget allows."""
    least = budget.limits(spec)[0]
    return [m for t in templates() for m in fitted(t, spec, budget) if m.counts.deployed >= least]


def rank(
    evidence: Evidence,
    spec: BackboneSpec,
    budget: Budget,
    rows: int,
    *,
    leave_out: Collection[str] = (),
    serve: str | None = None,
    head: bool = True,
) -> Ranking:
    """Fit the portfolio to a budget and rank it, without the clusters `leave_out`.

    Plain LoRA is first where the evidence does not allow more. It is at that of its rates which is expected
    to be best, by however little: one has to be chosen anyway. Other recipes have to be better than it with
    some probability. Where there is no evidence it is at the middle rate.

    Args:
        serve: how recipes have to be servable (see `autopeft.graph.serving`); the others are left out.
        head: whether the task has a trained head, which not every way can serve.
    """
    most = budget.limits(spec)[1]
    found = members(spec, budget)
    if serve is not None:
        why = [unservable(build_graph(m.recipe, spec), serve, head=head) for m in found]
        if found and None not in why:
            return Ranking((), None, f"no recipe of the portfolio can be served as {serve}: {why[0]}")
        found = [m for m, reason in zip(found, why, strict=True) if reason is None]
    first = reference_of([Key(m.template, m.rate) for m in found])
    if first is None and found:
        return Ranking(
            (), None, f"no LoRA of the portfolio's sizes fits the budget {budget}, and gains are over LoRA"
        )
    if first is None:
        room = f"the budget {budget} ({most:,} parameters) on this backbone"
        return Ranking((), None, f"no recipe of the portfolio fits {room}")
    target = Target(most / spec.parameters, rows)
    over = partial(estimates, evidence, target, leave_out=leave_out)
    known = over(reference=first)
    better = {key: e.gain for key, e in known.items() if key.template == first.template and e.gain > 0}
    if better:
        first = max(better, key=lambda key: better[key])
        known = over(reference=first)

    # What steps take beside those of plain LoRA: for each backbone at the recorded budget that is nearest.
    steps: dict[str, dict[Key, float]] = defaultdict(dict)
    far = lambda item: abs(math.log(item[0][0].share / target.share))  # noqa: E731
    for (here, key), step in sorted(evidence.costs.items(), key=far):
        steps[here.model].setdefault(key, step)
    ratios: dict[Key, list[float]] = defaultdict(list)
    for costs in steps.values():
        if (own := costs.get(first)) is not None:
            for key, step in costs.items():
                ratios[key].append(step / own)

    # Best first by what the gain exceeds with some probability; of equals plain LoRA.
    ranked: list[tuple[float, bool, Choice]] = []
    for member in found:
        key = Key(member.template, member.rate)
        if key in known or key == first:
            estimate = known.get(key)
            cost = statistics.median(ratios[key]) if key in ratios else None
            choice = Choice(member, estimate, 1.0 if key == first else cost)
            ranked.append((0.0 if estimate is None else -estimate.lower_quartile, key != first, choice))
    ranked.sort(key=lambda place: place[:2])
    choices = [choice for *_, choice in ranked]
    reference = next(c for c in choices if c.key == first)
    reason = None
    if not known:
        reason = (
            f"there is no evidence from two clusters of tasks near a budget of {100 * target.share:.3g} % "
            f"and {target.rows:,} rows"
        )
    elif choices[0].key.template == first.template:
        reason = "the evidence shows no other recipe to be better, with a probability of 75 %"
    return Ranking(tuple(choices), reference, reason)
