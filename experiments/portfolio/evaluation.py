"""What recommendations are worth on tasks whose cluster was left out of their evidence.

A recommendation for a cell (task, rows, budget) is made from the other clusters alone, so that the scores it
is judged on had no part in it. What it is compared with, the best recorded recipe and LoRA at its best
rate, is chosen in the cell itself: by one seed, and judged by the other. Where there is one seed, both are
the same number, and the comparison favours what was chosen; such cells are counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lib.intervals import interval

import autopeft
from autopeft.counting import Budget
from autopeft.search.portfolio.choices import Ranking, rank
from autopeft.search.portfolio.evidence import BackboneShare, Evidence, Key
from autopeft.spec import BackboneSpec

__all__ = ["Judged", "asked_everywhere", "evaluation", "judged"]

BUDGETS = ("0.5%", "0.15%", "0.04%")
ASKED_ROWS = (100, 500, 2_000)
_COLUMNS = (
    "cells", "LoRA recommended", "without evidence", "gain over LoRA", "over LoRA at its best rate",
    "regret", "promised", "held",
)  # fmt: skip
Gains = Mapping[int, Mapping[Key, float]]  # seed, recipe: points above default LoRA in the same cell and seed


@dataclass(frozen=True)
class Judged:
    """A recommendation for a cell, judged by the cell's own trainings; differences in points.

    Attributes:
        gain: over LoRA at the middle one of its rates.
        over_tuned: over LoRA at the best of its rates.
        regret: of the best recorded recipe over it.
        expected: gain that was promised, over LoRA at the rate that the other clusters find best.
        lora: whether LoRA was recommended.
        abstained: whether it was for want of evidence.
        seeds: of the cell; with one, `over_tuned` and `regret` favour what is compared with.
    """

    task: str
    cluster: str
    rows: int
    budget: str
    pick: Key
    gain: float
    over_tuned: float
    regret: float
    expected: float
    covered: bool | None
    lora: bool
    abstained: bool
    seeds: int


def judged(evidence: Evidence, specs: Mapping[str, BackboneSpec], *, least: int = 10) -> Iterator[Judged]:
    """A recommendation for each cell that has trainings of `least` recipes, without its own cluster."""
    for budget in BUDGETS:
        for model, spec in specs.items():
            share = Budget.parse(budget).limits(spec)[1] / spec.parameters
            for (task, cluster, rows), gains in _cells(evidence, model, share).items():
                if len(set.intersection(*(set(g) for g in gains.values()))) >= least:
                    ranking = rank(evidence, spec, Budget.parse(budget), rows, leave_out=(cluster,))
                    yield _judge(ranking, gains, (task, cluster, rows, budget))


def _judge(ranking: Ranking, gains: Gains, cell: tuple[str, str, int, str]) -> Judged:
    first = next(c for c in ranking.choices if all(c.key in g for g in gains.values()))
    here, estimate = ranking.reference.key, first.estimate
    gain = statistics.fmean(g[first.key] for g in gains.values())
    # Expected is what the recipe gains over LoRA at the rate that the evidence finds best.
    over = gain - statistics.fmean(g.get(here, math.nan) for g in gains.values())
    return Judged(
        *cell,
        pick=first.key,
        gain=gain,
        over_tuned=gain - _chosen(gains, lambda key: key.template == here.template),
        regret=_chosen(gains, lambda key: True) - gain,
        expected=0.0 if estimate is None else estimate.gain,
        covered=None if estimate is None or math.isnan(over) else estimate.low <= over <= estimate.high,
        lora=ranking.reason is not None,
        abstained=not ranking.known,
        seeds=len(gains),
    )


def _cells(
    evidence: Evidence, model: str, share: float
) -> dict[tuple[str, str, int], dict[int, dict[Key, float]]]:
    """Gains of each cell at a budget, by seed; the reference has none."""
    found: dict[tuple[str, str, int], dict[int, dict[Key, float]]] = defaultdict(lambda: defaultdict(dict))
    for o in evidence.observations:
        if o.setting.model == model and math.isclose(o.share, share, rel_tol=1e-3):
            gains = found[o.setting.task, o.cluster, o.setting.rows][o.setting.seed]
            gains[o.key] = o.gain
            gains[evidence.references[BackboneShare(model, o.share)]] = 0.0
    return found


def _chosen(gains: Gains, allowed: Callable[[Key], bool]) -> float:
    """The mean gain of what each seed would choose among the allowed, judged by the other seeds."""
    worth = []
    for seed in gains:
        others = [s for s in gains if s != seed] or [seed]
        known = [k for k in gains[seed] if allowed(k) and all(k in gains[s] for s in others)]
        best = max(known, key=lambda k: gains[seed][k])
        worth.append(statistics.fmean(gains[s][best] for s in others))
    return statistics.fmean(worth)


def evaluation(evidence: Evidence, specs: Mapping[str, BackboneSpec]) -> str:
    """The tables of the README."""
    found = list(judged(evidence, specs))
    if not found:
        return "No cell has trainings of enough recipes yet."
    head = " | ".join(("rows", "budget", *_COLUMNS))
    lines = [f"| {head} |", "|---" * (2 + len(_COLUMNS)) + "|"]
    groups: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for j in found:
        for key in ((f"{j.rows:,}", j.budget), (f"{j.rows:,}", "all"), ("all", j.budget), ("all", "all")):
            groups[key].append(j)
    order = lambda key: ("all" in key, key[0] == "all", len(key[0]), key)  # noqa: E731
    for key in sorted(groups, key=order):
        lines.append(f"| {key[0]} | {key[1]} | {_line(groups[key])} |")
    single = sum(j.seeds == 1 for j in found)
    lines += [
        "",
        f"{single} of {len(found)} cells have one seed: there the comparisons favour what is compared with.",
    ]
    lines += ["", "| task | rows | budget | recommended | gain | regret |", "|---|---|---|---|---|---|"]
    for j in found:
        name = f"{j.pick.template}, rate {j.pick.rate}{' (no evidence)' if j.abstained else ''}"
        lines.append(f"| {j.task} | {j.rows:,} | {j.budget} | {name} | {j.gain:+.1f} | {j.regret:.1f} |")
    return "\n".join(lines)


def asked_everywhere(model: str, clusters: Mapping[str, str], budgets: Sequence[str] = BUDGETS) -> str:
    """How often `autopeft recommend` abstains or says LoRA without a look at the task, and what that takes.

    Asked is for every task that evidence was recorded of, its own cluster left out, whether its cell has
    trainings enough to be judged or not.
    """
    found, seconds = list[autopeft.Recommendation](), list[float]()
    for cluster, rows, budget in product(clusters.values(), ASKED_ROWS, budgets):
        before = time.process_time()
        found.append(autopeft.recommend(budget=budget, model=model, rows=rows, leave_out=(cluster,)))
        seconds.append(time.process_time() - before)
    abstained = sum(f.abstained for f in found)
    lora = sum(f.reason is not None and not f.abstained for f in found)
    rows_told = ", ".join(f"{rows:,}" for rows in ASKED_ROWS)
    return (
        f"Asked for {len(found)} cells ({len(clusters)} tasks; {rows_told} rows; {', '.join(budgets)}): "
        f"{abstained} without evidence, {lora} recommend LoRA on evidence. CPU seconds of an answer after "
        f"imports: {seconds[0]:.2f} for the first, {statistics.median(seconds):.2f} in the median."
    )


def _line(found: Sequence[Judged]) -> str:
    covered = [j.covered for j in found if j.covered is not None]
    return " | ".join(
        (
            str(len(found)),
            f"{100 * statistics.fmean(j.lora for j in found):.0f} %",
            f"{100 * statistics.fmean(j.abstained for j in found):.0f} %",
            _by_cluster((j.cluster, j.gain) for j in found),
            _by_cluster((j.cluster, j.over_tuned) for j in found),
            _by_cluster((j.cluster, j.regret) for j in found),
            f"{statistics.fmean(j.expected for j in found):+.1f}",
            f"{sum(covered)} of {len(covered)}",
        )
    )


def _by_cluster(values: Iterable[tuple[str, float]]) -> str:
    """Mean over clusters with its 95 % interval."""
    clusters: dict[str, list[float]] = defaultdict(list)
    for cluster, value in values:
        clusters[cluster].append(value)
    mean, half = interval([statistics.fmean(found) for found in clusters.values()])
    return f"{mean:+.1f}" if math.isinf(half) else f"{mean:+.1f} ± {half:.1f}"
