"""How often the interval of a comparison holds the true difference, and how often claims are wrong.

    python experiments/coverage/run.py             # minutes
    python experiments/coverage/run.py --tables    # the last recorded run

Two recipes of known difference answer *test* rows that are drawn anew each time, with seeds that are drawn
anew: a row has a difficulty that both share, a seed shifts its model, and what is left is chance. The
search's own `compare` gives the interval, by rows and as of before (rows of the two sides independent). A
claim is wrong where *better* is said at a true difference of 0, and where *as good within a point* is said at
a true difference of minus one point.

Where nothing is left to chance, seeds of a recipe answer alike, and so do both recipes on all rows but those
that make the difference: the fewest rows from which an interval can tell how far others would move it.

Where rows are copies, both recipes answer those of a text alike. Equally good ones then differ most on texts
that suit one of them, for each of its seeds: a text has a difficulty for each recipe, too. Beside the
interval stands the one that counts each copy as a row of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import read_json, write_json
from scipy import stats

from autopeft.search.selection.significance import compare
from autopeft.tasks.kinds.metric import pseudo_values
from autopeft.tasks.scored import ScoredSplit

__all__ = ["COPIES", "Setting", "grid", "measure", "measure_copies"]

RESULTS = Path(__file__).parent / "results" / "coverage.json"
TIMES, MARGIN = 400, 0.01
Numbers = NDArray[Any]


@dataclass(frozen=True)
class Setting:
    """What is true: rows of *test*, seeds of each side, points by which a seed shifts a model (sd), the
    difference in points, and whether what is left is chance."""

    rows: int
    seeds: int
    spread: float
    difference: float
    chance: bool = True


def grid() -> Iterator[Setting]:
    """All that is simulated."""
    for rows in (500, 1000):
        for seeds in (3, 4, 5):
            for spread in (0.0, 1.0, 3.0):
                for difference in (0.0, -1.0):
                    yield Setting(rows, seeds, spread, difference)
    for rows in (50, 100, 200, 300, 350, 400, 450, 872, 1000):
        yield Setting(rows, 3, 0.0, -1.0, chance=False)


def _accuracy(predictions: Numbers, labels: Numbers) -> float:
    return float((predictions == labels).mean())


COPIES = {
    "500 × 1": lambda rng: np.full(500, 1),
    "250 × 2": lambda rng: np.full(250, 2),
    "100 × 5": lambda rng: np.full(100, 5),
    "30 × 20": lambda rng: np.full(30, 20),
    "300 × 1 and about 10 × 20": lambda rng: np.where(rng.random(310) < 10 / 310, 20, 1),
    "100 × 1, 2, …, 5 on average": lambda rng: rng.geometric(0.2, 100),
    "200 × 1, 2, …, 100 by Zipf's law": lambda rng: np.minimum(rng.zipf(1.8, 200), 100),
}
"""How often each text stands in *test*, drawn anew each time."""

_EASE, _HARD = 1.6, 1.5  # 81 % are right; two seeds of a recipe differ on 15 % of the rows
_RIGHT = 0.81
_SLOPE = float(stats.norm.pdf(_EASE / np.hypot(1, _HARD)) / np.hypot(1, _HARD))  # accuracy by the shift


def _side(
    rng: np.random.Generator, hard: Numbers, setting: Setting, points: float
) -> tuple[dict[int, float], dict[int, Sequence[float]]]:
    scores, parts = {}, {}
    for seed in range(setting.seeds):
        if not setting.chance:
            right = (stats.norm.cdf(hard) < _RIGHT + points / 100).astype(float)
            scores[seed], parts[seed] = _scored(right)
            continue
        shift = (points + setting.spread * rng.normal()) / 100 / _SLOPE
        right = (rng.random(len(hard)) < stats.norm.cdf(_EASE + shift - _HARD * hard)).astype(float)
        scores[seed], parts[seed] = _scored(right)
    return scores, parts


def _scored(right: Numbers, texts: Numbers | None = None) -> tuple[float, Numbers]:
    """Accuracy, and what groups of rows contribute to it, those of a text in one of them."""
    return float(right.mean()), pseudo_values(_accuracy, right, np.ones(len(right)), texts)


def measure(setting: Setting, times: int = TIMES) -> dict[str, float]:
    """Shares of intervals that hold the truth, of claims, and mean half-widths in points."""
    rng = np.random.default_rng(0)
    split, truth = ScoredSplit("accuracy", setting.rows), setting.difference / 100
    found = {"held": 0.0, "half": 0.0, "better": 0.0, "as_good": 0.0, "held_apart": 0.0, "half_apart": 0.0}
    for _ in range(times):
        hard = rng.normal(size=setting.rows)
        mine, my_parts = _side(rng, hard, setting, setting.difference)
        other, other_parts = _side(rng, hard, setting, 0.0)
        rowwise = compare(mine, other, split, name="b", parts=(my_parts, other_parts), margin=MARGIN)
        apart = compare(mine, other, split, name="b")
        assert rowwise.low is not None
        assert rowwise.high is not None
        assert apart.low is not None
        assert apart.high is not None
        found["held"] += rowwise.low <= truth <= rowwise.high
        found["half"] += 50 * (rowwise.high - rowwise.low)
        found["better"] += rowwise.low > 0
        found["as_good"] += bool(rowwise.as_good)
        found["held_apart"] += apart.low <= truth <= apart.high
        found["half_apart"] += 50 * (apart.high - apart.low)
    return {key: value / times for key, value in found.items()}


_OWN, _CHANCE, _COPY_SEEDS = 1.5, 0.35, 4  # seeds of a recipe differ on 5 % of the rows, recipes on 22 %


def measure_copies(
    name: str, difference: float, *, chance: bool = True, times: int = TIMES
) -> dict[str, float]:
    """Shares of intervals that hold the truth, of claims, and half-widths in points, with copies known and
    with each a row of its own (`…_apart`).

    Args:
        name: a key of `COPIES`.
        difference: what is true, in points.
        chance: as in `Setting`; without, seeds answer alike, and so do both recipes but for the difference.
    """
    rng, truth = np.random.default_rng(0), difference / 100
    found = dict.fromkeys(("held", "half", "better", "worse", "as_good"), 0.0)
    found |= dict.fromkeys([f"{key}_apart" for key in found], 0.0)
    for _ in range(times):
        sizes = COPIES[name](rng)
        texts = np.repeat(np.arange(len(sizes)), sizes)
        hard = rng.normal(size=len(sizes))
        both = [_answers(rng, hard, points, chance) for points in (difference, 0.0)]
        for apart in (False, True):
            sides = [[_scored(right[texts], None if apart else texts) for right in side] for side in both]
            scores = [{seed: one[0] for seed, one in enumerate(side)} for side in sides]
            parts = [{seed: one[1] for seed, one in enumerate(side)} for side in sides]
            split = ScoredSplit("accuracy", len(texts), sizes=() if apart else tuple(sizes.tolist()))
            seen = compare(*scores, split, name="b", parts=(parts[0], parts[1]), margin=MARGIN)
            assert seen.low is not None
            assert seen.high is not None
            told = {
                "held": seen.low <= truth <= seen.high,
                "half": 50 * (seen.high - seen.low),
                "better": seen.low > 0,
                "worse": seen.high < 0,
                "as_good": bool(seen.as_good),
            }
            for key, value in told.items():
                found[f"{key}_apart" if apart else key] += value
    return {key: value / times for key, value in found.items()}


def _answers(rng: np.random.Generator, hard: Numbers, points: float, chance: bool) -> list[Numbers]:
    """Of each seed of a recipe which texts it answers rightly, so many points more of them than 81 %."""
    share = _RIGHT + points / 100
    if not chance:
        return [(stats.norm.cdf(hard) < share).astype(float)] * _COPY_SEEDS
    ease = stats.norm.ppf(share) * np.sqrt(_HARD**2 + _OWN**2 + _CHANCE**2)
    ease = ease - _HARD * hard - _OWN * rng.normal(size=len(hard))
    return [(ease > _CHANCE * rng.normal(size=len(hard))).astype(float) for _ in range(_COPY_SEEDS)]


def copies() -> Iterator[dict[str, Any]]:
    """All that is simulated of copies."""
    for chance in (True, False):
        for name in COPIES:
            for difference in (0.0, -1.0) if chance else (-1.0,):
                measured = measure_copies(name, difference, chance=chance)
                yield {"texts": name, "difference": difference, "chance": chance, **measured}


def tables(rows: Sequence[dict[str, float]]) -> str:
    """What was simulated, as Markdown."""
    heads = ("rows", "seeds", "seed sd", "difference", "holds the truth", "± points")
    lines = [f"| {' | '.join((*heads, 'says better', 'says as good', 'of before'))} |", "|---" * 9 + "|"]
    for r in rows:
        shown = (
            *(f"{r['rows']:,}", f"{r['seeds']}", f"{r['spread']:g}" if r["chance"] else "alike"),
            f"{r['difference']:g}",
            *(f"{100 * r['held']:.1f} %", f"{r['half']:.1f}"),
            *(f"{100 * r['better']:.1f} %", f"{100 * r['as_good']:.1f} %"),
            f"{100 * r['held_apart']:.1f} %, ± {r['half_apart']:.1f}",
        )
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def copies_table(rows: Sequence[dict[str, Any]]) -> str:
    """What was simulated of copies, as Markdown."""
    heads = ("texts × copies", "seeds", "difference", "holds the truth", "± points", "says a difference")
    lines = [f"| {' | '.join((*heads, 'says as good', 'each copy a row'))} |", "|---" * 8 + "|"]
    for r in rows:
        claims, before = (100 * (r[f"better{end}"] + r[f"worse{end}"]) for end in ("", "_apart"))
        told = f"{100 * r['held_apart']:.1f} %, ± {r['half_apart']:.1f}, {before:.1f} %"
        shown = (
            *(r["texts"], "differ" if r["chance"] else "alike", f"{r['difference']:g}"),
            *(f"{100 * r['held']:.1f} %", f"{r['half']:.1f}", f"{claims:.1f} %"),
            *(f"{100 * r['as_good']:.1f} %", f"{told}, {100 * r['as_good_apart']:.1f} %"),
        )
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print the last recorded run")
    if not parser.parse_args().tables:
        rows = [asdict(s) | measure(s) for s in grid()]
        write_json(RESULTS, {"times": TIMES, "rows": rows, "copies": list(copies())})
    recorded = read_json(RESULTS)
    print(tables(recorded["rows"]), copies_table(recorded["copies"]), sep="\n\n")


if __name__ == "__main__":
    main()
