"""Every sampler on a surrogate of recorded trials: which is the simplest that is not worse than the best?

    python experiments/samplers/run.py --record    # some three hours of one core: the trainings
    python experiments/samplers/run.py             # two hours: the searches; goes on where it stopped
    python experiments/samplers/run.py --tables

Recorded are recipes of the default space as it first was (`space.yaml`), on `movie-sentences` at 0.5 %: what
stands in `results/trials.jsonl` is not trained again, and two processes share the work with `--part 0/2` and
`--part 1/2`. Each sampler searches that space as `autopeft search` does, for 60 trials of 80 steps, with 30
seeds (`gp`: 10); scores come from a regression on the recording, with the noise that its repeats showed. Once
for the score alone: regret, which is what the winner lacks, without noise, to the best recipe that a long
climb or any of the searches found. The winner is confirmed as a search does it: of the three recipes of the
highest measured scores the one with the best mean over three further trainings. Once for score and size:
hypervolume of what was found, without noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.intervals import interval, mean_of
from lib.recorded import Recorded
from lib.recording import record
from lib.replay import Ground, Trained, replay
from lib.settings import RESULTS, SETTINGS
from lib.storage import Kept
from lib.surrogate import MODELS, Surrogate

from autopeft.search.optimization.hypervolume import hypervolume
from autopeft.search.optimization.successive_halving import Rungs

__all__ = ["main"]

# From the simplest on: what Optuna has and needs nothing, what it has and needs scipy, what is ours.
SAMPLERS = ("random", "tpe", "gp", "linear")
# Two more are in the recording: samplers of this project that went because they were not better.
RECORDED = ("random", "tpe", "nsga2", "gp", "evolution", "linear")
TRIALS, MARKS = 60, (12, 30, 60)
TOP, FRESH = 3, 3
# Winners differ much from seed to seed, since some recipes train with some seeds only; `gp` takes minutes.
SEEDS = {sampler: range(10 if sampler == "gp" else 30) for sampler in RECORDED}
# What is told: title, objectives of the search, what of its course, and whether more is better.
MEASURES = (
    ("regret of the confirmed winner", 1, "winner", -1.0),
    ("regret of the highest measured score", 1, "first", -1.0),
    ("regret of the best of all", 1, "highest", -1.0),
    ("hypervolume", 2, "volume", 1.0),
)
REGRESSIONS = 2


def course(
    found: Sequence[Trained], base: float, limit: float, surrogate: Surrogate, seed: int
) -> dict[str, Any]:
    """What a search had after so many trials."""
    after = {}
    for mark in MARKS:
        part = found[:mark]
        first, *_ = ranked = sorted(part, key=lambda t: (-t.measured, t.deployed))
        volume = hypervolume([(t.true, t.deployed / limit) for t in part], (base, 1.0))
        rng = np.random.default_rng((seed, mark))
        after[str(mark)] = {
            "winner": confirmed(ranked, surrogate, rng).true, "first": first.true, "volume": volume,
            "measured": float(first.measured), "highest": max(t.true for t in part),
        }  # fmt: skip
    return after


def confirmed(ranked: Sequence[Trained], surrogate: Surrogate, rng: np.random.Generator) -> Trained:
    """Of the first few recipes the one with the highest mean over further trainings."""
    finalists = list({t.hash: t for t in reversed(ranked)}.values())[::-1][:TOP]
    means = [
        np.mean([surrogate.measured(t.recipe, t.hash, rng)[surrogate.steps[-1]] for _ in range(FRESH)])
        for t in finalists
    ]
    return finalists[int(np.argmax(means))]


def compare(recorded: Recorded, kept: Kept, models: Sequence[str]) -> None:
    """Run what is missing."""
    setting = SETTINGS["samplers"]
    base = min(r["scores"][str(setting.steps)] for r in recorded.rows if r["scores"])
    for model in models:
        ground = Ground(setting.load_space(), setting.budget, recorded.spec, recorded.surrogate(model))
        kept.get(f"{model}/best", ground.best)
        slow_last = sorted(SAMPLERS, key="gp".__eq__)
        every = [(s, n, seed) for s in slow_last for n in (1, 2) for seed in SEEDS[s]]
        for sampler, objectives, seed in every:
            run = partial(_run, ground, sampler, objectives, seed, setting.steps, base)
            result = kept.get(f"{model}/{sampler}/{objectives}/{seed}", run)
            print(model, sampler, objectives, seed, result[str(TRIALS)], flush=True)


def missing(kept: Kept, models: Sequence[str]) -> list[str]:
    """Keys of the results that the tables of some regressions need and that are not there."""
    searches = [f"{s}/{n}/{seed}" for s in RECORDED for n in (1, 2) for seed in SEEDS[s]]
    wanted = [f"{model}/{name}" for model in models for name in ("best", *searches)]
    return [key for key in wanted if key not in kept.results]


def best_of(kept: Kept, model: str) -> float:
    """The best true score on a regression: that of the climb, or of any search."""
    searches = [r for key, r in kept.results.items() if key.startswith(f"{model}/") and isinstance(r, dict)]
    return max([kept.results[f"{model}/best"], *(r[str(TRIALS)]["highest"] for r in searches)])


def _run(ground: Ground, sampler: str, objectives: int, seed: int, steps: int, base: float) -> dict[str, Any]:
    rungs, limit = Rungs.of(steps), ground.budget.limits(ground.spec)[1]
    found = replay(ground, sampler=sampler, seed=seed, trials=TRIALS, rungs=rungs, objectives=objectives)
    return course(found, base, limit, ground.surrogate, seed)


def tables(recorded: Recorded, kept: Kept, models: Sequence[str]) -> str:
    """Markdown: the regressions, then for each of those used what the samplers came to."""
    lines = ["| regression | rank correlation | better half | R² |", "|---|---|---|---|"]
    lines += [f"| {f.model} | {f.rank:.2f} | {f.top:.2f} | {f.r2:.2f} |" for f in recorded.fits]
    noise = ", ".join(
        f"{100 * s:.2f} at step {k}" for k, s in zip(recorded.steps, recorded.noise, strict=True)
    )
    lines += ["", f"Standard deviation between seeds, points: {noise}.", ""]
    for model in models:
        best = best_of(kept, model)
        for title, objectives, key, sign in MEASURES:
            values = {s: _values(kept, model, s, objectives, key, best) for s in RECORDED}
            lines += _table(f"{model}, {title} × 100", values, sign)
    return "\n".join(lines)


def _values(
    kept: Kept, model: str, sampler: str, objectives: int, key: str, best: float
) -> dict[str, list[float]]:
    """By number of trials, for each seed: hypervolume, or regret of a score."""
    found = [kept.results[f"{model}/{sampler}/{objectives}/{seed}"] for seed in SEEDS[sampler]]
    base = 0.0 if key == "volume" else best
    return {str(m): [100 * abs(base - r[str(m)][key]) for r in found] for m in MARKS}


def _table(title: str, values: dict[str, dict[str, list[float]]], sign: float) -> list[str]:
    """Each sampler's mean, and by how much it is less than the best one after as many trials; in bold where
    that cannot be chance."""
    lines = [f"| {title} | " + " | ".join(f"after {m} | less than the best" for m in MARKS) + " |"]
    lines.append("|---" * (2 * len(MARKS) + 1) + "|")
    best = {m: max(values, key=lambda s: sign * interval(values[s][str(m)])[0]) for m in MARKS}
    for sampler, own in values.items():
        cells = []
        for m in MARKS:
            behind = [sign * (b - v) for b, v in zip(values[best[m]][str(m)], own[str(m)], strict=False)]
            worse, half = interval(behind)
            shown = f"{worse:.2f} ± {half:.2f}"
            shown = "" if sampler == best[m] else f"**{shown}**" if worse > half else shown
            cells += [mean_of(own[str(m)]), shown]
        lines.append(f"| {sampler} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(MODELS), help="one regression, beside another process")
    parser.add_argument("--record", action="store_true", help="train what the recording lacks, then stop")
    parser.add_argument(
        "--part", default="0/1", metavar="K/N", help="record every N-th recipe, from the K-th on"
    )
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    arguments = parser.parse_args()
    if arguments.record:
        record(RESULTS["samplers"] / "trials.jsonl", SETTINGS["samplers"], arguments.part)
        return
    recorded = Recorded("samplers")
    kept = Kept(RESULTS["samplers"] / "results.json", recorded.to_dict())
    print(recorded.to_dict(), flush=True)
    if not recorded.usable:
        sys.exit("No regression ranks unseen recipes well enough: nothing can be concluded from a replay.")
    models = [arguments.only] if arguments.only else [f.model for f in recorded.fits[:REGRESSIONS]]
    if not arguments.tables:
        compare(recorded, kept, models)
    elif keys := missing(kept, models):
        sys.exit(f"{len(keys)} results are missing, {keys[0]} first: run it without --tables.")
    print(tables(recorded, kept, models))


if __name__ == "__main__":
    main()
