"""Which recipe goes before which: by score, and the Pareto front of deployed parameters against the score.

Rungs, finalists, warm starts, the front and the report all rank by these rules.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TypeVar

from autopeft.runs.records import FrontPoint, TrialRecord

__all__ = ["FrontPoint", "best_first", "front_csv", "front_json", "nondominated", "order", "pareto_front"]

T = TypeVar("T")
Order = tuple[float, float, float]


def order(score: float, cost: float | None = 0, number: float | None = 0) -> Order:
    """A sort key, best first: by score, then the lower cost (the size, unless another is given), then the
    earlier trial. A recipe without a cost or a number follows those that have one."""
    return -score, math.inf if cost is None else cost, math.inf if number is None else number


def best_first(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The recipes that were trained to the end and scored, best first."""
    done = [(r.rank, r) for r in records if r.state == "complete" and r.rank is not None]
    return [r for _, r in sorted(done, key=lambda pair: order(pair[0], pair[1].deployed, pair[1].number))]


def nondominated(items: Iterable[T], order_of: Callable[[T], Order]) -> list[T]:
    """The items that no other beats in score or cost without being worse in the other, by cost; of equal ones
    the earliest.

    Args:
        order_of: the item's `order`.
    """
    front: list[T] = []
    least = math.inf
    for item in sorted(items, key=order_of):
        cost = order_of(item)[1]
        if cost < least:
            least = cost
            front.append(item)
    return front[::-1]


def pareto_front(records: Iterable[TrialRecord]) -> list[FrontPoint]:
    """The trained recipes that are not dominated, by size: each scores more than every smaller one.

    Failed trials and duplicates are left out, and so are records without a size.
    """
    points = [
        FrontPoint(
            number=r.number if r.number is not None else -1,
            deployed=int(r.deployed),
            share=float(r.share or 0.0),
            score=r.score,
            hash=r.hash,
            name=str(r.recipe.get("name", "")),
        )
        for r in records
        if r.state == "complete" and r.score is not None and r.deployed is not None
    ]
    return nondominated(points, lambda p: order(p.score, p.deployed, p.number))


def front_csv(front: Iterable[FrontPoint]) -> str:
    """The front as CSV with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "deployed", "share", "score", "hash", "name"])
    for p in front:
        writer.writerow([p.number, p.deployed, f"{p.share:.8f}", f"{p.score:.6f}", p.hash, p.name])
    return out.getvalue()


def front_json(front: Iterable[FrontPoint]) -> str:
    """The front as a JSON list."""
    return json.dumps([asdict(p) for p in front], indent=2) + "\n"
