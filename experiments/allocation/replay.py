"""Searches replayed on recorded trainings, and what a score on the way says of the end."""

from __future__ import annotations

import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from scipy.stats import spearmanr

from autopeft.recipe.pooling import POOLINGS
from autopeft.search.selection.finalists import promise

__all__ = ["ALLOCATIONS", "CRITERIA", "Allocation", "Outcome", "Recorded", "correlations", "replay", "tables"]

CRITERIA = ("score", "loss", "calibrated")
LORA, FROM_PORTFOLIO, REPLAYS, _NEARLY = "lora", 5, 400, 0.9
DRAWN, ANY_RATE = "drawn", "drawn, any rate"
"""Draws of the space as it was, most of them with one seed: of another search."""

LORAS = (LORA, "lora, slower", "lora, upper half", "lora, upper half, slower")
"""Among which a LoRA is tuned, as far as they were trained."""

Row = Mapping[str, Any]


CHOSE = "†"
"""Marks figures of searches that took every recorded seed, told by the seeds that chose: these flatter."""


@dataclass(frozen=True)
class Allocation:
    """How a search spends its steps.

    Attributes:
        trials: recipes that are tried; the first of them are the portfolio's.
        steps: of each training.
        top, seeds: finalists, and the fresh seeds of each; the LoRA of the portfolio has as many.
        rung: at which the better third of the trials goes on; `None` for none.
    """

    trials: int
    steps: int
    top: int
    seeds: int
    rung: int | None = None

    @property
    def cost(self) -> int:
        """Training steps of trials and finalists."""
        tried = self.trials * self.steps
        if self.rung is not None:
            tried = self.trials * self.rung + -(-self.trials // 3) * (self.steps - self.rung)
        return tried + self.top * self.seeds * self.steps


ALLOCATIONS = (
    Allocation(12, 60, 2, 1),
    Allocation(12, 60, 2, 2),
    Allocation(12, 60, 2, 3),
    Allocation(18, 60, 0, 0),
    Allocation(15, 60, 3, 1),
    Allocation(9, 60, 3, 3),
    Allocation(9, 60, 3, 1),
    Allocation(8, 60, 1, 1),
    Allocation(8, 60, 1, 2),
    Allocation(8, 60, 2, 1),
    Allocation(8, 60, 2, 2),
    Allocation(8, 60, 2, 3),
    Allocation(6, 60, 2, 1),
    Allocation(6, 60, 3, 1),
    Allocation(6, 60, 4, 1),
    Allocation(6, 60, 2, 2),
    Allocation(6, 60, 4, 2),
    Allocation(6, 60, 4, 3),
    Allocation(20, 60, 2, 3, rung=20),
    Allocation(16, 60, 2, 3, rung=40),
    Allocation(20, 30, 4, 3),
    Allocation(6, 120, 1, 3),
    Allocation(5, 120, 2, 2),
    Allocation(12, 120, 1, 3, rung=40),
    Allocation(9, 120, 2, 3, rung=40),
    Allocation(12, 120, 2, 3, rung=40),
)
"""About as many steps as a quick search has had, 1,080 and 1,320, or fewer; the last takes a sixth more."""


class Recorded:
    """Trainings of one task and one length, by recipe and seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows: dict[str, dict[int, Row]] = defaultdict(dict)
        for row in rows:
            self.rows[row["hash"]][row["seed"]] = row
        # A seed that is being recorded would leave few recipes, and one that has more, few seeds.
        counts = Counter(row["seed"] for row in rows if row["origin"] != ANY_RATE)
        self.seeds = sorted(s for s, many in counts.items() if many >= _NEARLY * max(counts.values()))
        told = {key: own for key, own in self.rows.items() if self.origin(key) != ANY_RATE}
        whole = {key: {s: own[s] for s in self.seeds if s in own} for key, own in told.items()}
        self.rows = {key: own for key, own in whole.items() if len(own) == len(self.seeds)}

    def origin(self, key: str) -> str:
        """Where a recipe comes from: a template's name, or `drawn`."""
        return str(next(iter(self.rows[key].values()))["origin"])

    def merit(self, key: str, seed: int, step: int, criterion: str) -> float:
        """What a training is ranked by at a step, higher is better."""
        told = self.rows[key][seed]["select"][str(step)][criterion]
        return float(told if criterion == "score" else -told)

    def further(self, key: str, seeds: Collection[int] = ()) -> float:
        """Mean score on further rows, in points, of trainings with these seeds; with all where none is
        named."""
        own = self.rows[key]
        return 100 * statistics.fmean(own[seed]["further"] for seed in seeds or own)

    @property
    def loras(self) -> list[str]:
        """LoRA at the places and rates among which it is tuned."""
        return [key for key in self.rows if self.origin(key) in LORAS]


@dataclass(frozen=True)
class Outcome:
    """What a replayed search returns, and the LoRA that it was compared with.

    Attributes:
        seeds: that had no part in either choice, by which both are told; empty where all had.
    """

    winner: str
    lora: str
    seeds: tuple[int, ...]


def replay(known: Recorded, how: Allocation, criterion: str, rng: random.Random) -> Outcome:
    """One search: all trials have one seed, finalists and LoRA the next ones; what promises most wins. LoRA
    is tuned with the seed of the trials."""
    others = [k for k in known.rows if known.origin(k) not in (LORA, *LORAS[1::2])]
    portfolio = [k for k in others if known.origin(k) != DRAWN]
    drawn = [k for k in others if known.origin(k) == DRAWN]
    first = rng.sample(portfolio, min(FROM_PORTFOLIO, how.trials, len(portfolio)))
    tried = first + rng.sample(drawn, min(how.trials - len(first), len(drawn)))
    seed, *fresh = rng.sample(known.seeds, min(1 + how.seeds, len(known.seeds)))
    if how.rung is not None:
        at = how.rung
        tried.sort(key=lambda k: -known.merit(k, seed, at, criterion))
        tried = tried[: -(-len(tried) // 3)]
    tried.sort(key=lambda k: -known.merit(k, seed, how.steps, criterion))
    finalists = tried[: how.top] if fresh else tried[:1]
    lora = max(known.loras, key=lambda k: known.merit(k, seed, how.steps, criterion))
    sides = [lora, *finalists]
    scores = [[known.merit(k, s, how.steps, criterion) for s in (seed, *fresh)] for k in sides]
    expected = promise(scores)
    winner = sides[max(range(len(sides)), key=expected.__getitem__)]
    return Outcome(winner, lora, tuple(s for s in known.seeds if s not in (seed, *fresh)))


def _by_group(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["task"], row["steps"]].append(row)
    return dict(found)


def correlations(known: Recorded, step: int, criterion: str) -> tuple[float, float]:
    """Rank correlation of what a training has at a step with the further score of its recipe: of all recipes,
    and of the better half. Means over the seeds."""
    end = {key: known.further(key) for key in known.rows}
    half = sorted(end, key=lambda k: -end[k])[: max(2, len(end) // 2)]

    def mean(keys: Sequence[str]) -> float:
        told = []
        for seed in known.seeds:
            merits = [known.merit(k, seed, step, criterion) for k in keys]
            alike = len(set(merits)) == 1  # they say nothing
            told.append(0.0 if alike else float(spearmanr(merits, [end[k] for k in keys]).statistic))
        return statistics.fmean(told)

    return mean(list(end)), mean(half)


def _steps_of(known: Recorded) -> list[int]:
    row = next(iter(next(iter(known.rows.values())).values()))
    return [int(step) for step in row["select"]]


def tables(rows: Sequence[Row]) -> str:
    """What there is, as Markdown, for each reading of the heads."""
    found = list[str]()
    for pooling in POOLINGS:
        own = [row for row in rows if row.get("pooling", "own") == pooling]
        found += [f"Heads read: {pooling}", "", _tables(own), ""] if own else []
    return "\n".join(found)


def _tables(rows: Sequence[Row]) -> str:
    told = {key: Recorded(own) for key, own in _by_group(rows).items()}
    groups = {key: known for key, known in told.items() if len(known.rows) > 3 and known.loras}
    return "\n".join([*_draws(rows), "", *_ranks(groups), "", *_searches(groups)])


def _draws(rows: Sequence[Row]) -> Iterator[str]:
    """How draws of the space compare with LoRA in the same trainings."""
    yield "| task | steps | where from | recipes | median, points below LoRA | less than a point below |"
    yield "|---|---|---|---|---|---|"
    for (task, steps), own in sorted(_by_group(rows).items()):
        lora = [row["further"] for row in own if row["origin"] == LORA and row["seed"] == 0]
        for origin in (ANY_RATE, DRAWN):
            found = [row["further"] for row in own if row["origin"] == origin and row["seed"] == 0]
            if lora and found:
                below = [100 * (lora[0] - value) for value in found]
                level = sum(value < 1 for value in below)
                middle = statistics.median(below)
                yield f"| {task} | {steps} | {origin} | {len(found)} | {middle:.1f} | {level} |"


def _ranks(groups: Mapping[tuple[str, int], Recorded]) -> Iterator[str]:
    yield "| task | steps | at step | " + " | ".join(f"{c}, all | {c}, better half" for c in CRITERIA) + " |"
    yield "|---|---|---|" + "---|---|" * len(CRITERIA)
    for (task, steps), known in sorted(groups.items()):
        for step in _steps_of(known):
            told = [f"{v:.2f}" for c in CRITERIA for v in correlations(known, step, c)]
            yield f"| {task} | {steps} | {step} | {' | '.join(told)} |"


def _searches(groups: Mapping[tuple[str, int], Recorded]) -> Iterator[str]:
    """Gains over the LoRA that was tuned in trainings of the same length, and further scores; means over
    tasks and replays."""
    yield (
        "| recipes | steps | rung | finalists × seeds | cost, steps | "
        + " | ".join(f"gain by {c} | further by {c} | won by draws" for c in CRITERIA)
        + " |"
    )
    yield "|---|---|---|---|---|" + "---|---|---|" * len(CRITERIA)
    tasks = {task for task, _ in groups}
    for how in ALLOCATIONS:
        if any((task, how.steps) not in groups for task in tasks):
            continue
        # One seed for the trials, and the fresh ones: more than are recorded are not replayed.
        if any(how.seeds >= len(groups[task, how.steps].seeds) for task in tasks):
            continue
        told = []
        for criterion in CRITERIA:
            gains, further, draws = list[float](), list[float](), 0
            for task, index in product(sorted(tasks), range(REPLAYS)):
                known = groups[task, how.steps]
                out = replay(known, how, criterion, random.Random(index))
                won = known.further(out.winner, out.seeds)
                gains.append(won - known.further(out.lora, out.seeds))
                further.append(won)
                draws += known.origin(out.winner) == DRAWN
            # Replays share their trainings, so that an interval over them would tell of the draws alone.
            share = 100 * draws / len(gains)
            told.append(f"{statistics.fmean(gains):+.2f} | {statistics.fmean(further):.2f} | {share:.0f} %")
        rung = how.rung if how.rung is not None else "none"
        chose = "" if out.seeds else f" {CHOSE}"
        yield (
            f"| {how.trials} | {how.steps} | {rung} | {how.top} × {how.seeds}{chose} | {how.cost:,} | "
            f"{' | '.join(told)} |"
        )
