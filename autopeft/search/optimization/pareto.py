"""The Pareto front of a search: deployed parameters against the score on *select*."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from autopeft.runs.records import TrialRecord

__all__ = ["FrontPoint", "front_csv", "front_json", "pareto_front"]


@dataclass(frozen=True)
class FrontPoint:
    """A trained recipe that no other beats in both size and score."""

    number: int
    deployed: int
    share: float
    score: float
    hash: str
    name: str


def pareto_front(records: Iterable[TrialRecord]) -> list[FrontPoint]:
    """The trained recipes that are not dominated, by size: each scores more than every smaller one.

    Failed trials and duplicates are left out.
    """
    points = [
        FrontPoint(
            number=r.number if r.number is not None else -1,
            deployed=int(r.counts["deployed"]),
            share=float(r.counts["share"]),
            score=r.score,
            hash=r.hash,
            name=str(r.recipe.get("name", "")),
        )
        for r in records
        if r.state == "complete" and r.score is not None and r.counts is not None
    ]
    front: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.deployed, -p.score, p.number)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


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
