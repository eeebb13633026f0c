"""Does a wider space cost anything? Random recipes of `default` before and after it grew, side by side.

    python experiments/width/run.py --record      # some 50 minutes of one core; goes on where it stopped
    python experiments/width/run.py               # the table

Both are recordings of the same task, budget, rows and steps (`../samplers/results/trials.jsonl`: 160 random
recipes of the space as it first was; `results/trials.jsonl`: 100 of the one with the reparameterized family,
higher rates for vectors and a free rate of the head). Told are the mean score on *select*, what the best of
15 random recipes scores on average, and how many end below 70 % (the head alone has 65); each with a 95 %
interval from 10,000 bootstrap samples of recipes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.recording import record
from lib.settings import RESULTS, SETTINGS
from lib.storage import read_rows

__all__ = ["MEASURES", "best_of", "compare", "random_scores", "table", "weak"]

DRAWN, SAMPLES = 15, 10_000
WEAK = 0.7
Scores = np.ndarray


def best_of(scores: Scores) -> float:
    """The expected highest of `DRAWN` scores drawn at random, with replacement."""
    share = np.arange(len(scores) + 1) / len(scores)
    return float(np.sort(scores) @ np.diff(share**DRAWN))


def weak(scores: Scores) -> float:
    """The share that has learnt little more than the head alone would."""
    return float((scores < WEAK).mean())


MEASURES: dict[str, Callable[[Scores], float]] = {
    "mean score": lambda scores: float(scores.mean()),
    f"best of {DRAWN}": best_of,
    "weak": weak,
}


def random_scores(name: str) -> Scores:
    """Of a recording, the last scores of the recipes that were drawn at random; those that failed score 0."""
    rows = [r for r in read_rows(RESULTS[name] / "trials.jsonl") if (r["origin"], r["seed"]) == ("random", 0)]
    return np.array([row["scores"].get(str(SETTINGS[name].steps), 0.0) for row in rows])


def compare(
    measure: Callable[[Scores], float], sides: Sequence[Scores], seed: int = 0
) -> list[tuple[float, float, float]]:
    """The measure of both sides and of their difference (second less first), each with its interval."""
    rng = np.random.default_rng(seed)
    drawn = [[measure(rng.choice(side, len(side))) for _ in range(SAMPLES)] for side in sides]
    found = [measure(side) for side in sides]
    found.append(found[1] - found[0])
    drawn.append(list(np.subtract(drawn[1], drawn[0])))
    return [
        (value, *map(float, np.quantile(d, (0.025, 0.975)))) for value, d in zip(found, drawn, strict=True)
    ]


def table(sides: Sequence[Scores]) -> str:
    """In Markdown, in points."""
    narrow, wide = map(len, sides)
    lines = [
        f"| points | before ({narrow} recipes) | wider ({wide} recipes) | difference |",
        "|---|---|---|---|",
    ]
    for title, measure in MEASURES.items():
        cells = [
            f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            for value, low, high in compare(measure, sides)
        ]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="train what the recording lacks, then stop")
    parser.add_argument(
        "--part", default="0/1", metavar="K/N", help="record every N-th recipe, from the K-th on"
    )
    arguments = parser.parse_args()
    if arguments.record:
        record(RESULTS["width"] / "trials.jsonl", SETTINGS["width"], arguments.part)
        return
    wide = random_scores("width")
    if not len(wide):
        raise SystemExit("Nothing is recorded yet: python experiments/width/run.py --record")
    print(table([random_scores("samplers"), wide]))


if __name__ == "__main__":
    main()
