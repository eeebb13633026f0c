"""AutoPEFT's search against ours on its own space: hypervolume for each training step, on a surrogate.

    python experiments/against_autopeft/run.py --record   # some three hours of one core: the trainings
    python experiments/against_autopeft/run.py            # needs botorch, jax, jaxlib and numpyro
    python experiments/against_autopeft/run.py --tables
    python experiments/against_autopeft/run.py --start probe --record   # the same with heads from their probe

Recorded are recipes of the paper's own space on 1,000 rows of `trec`; what stands in `results/trials.jsonl`
is not trained again.

The paper's way is 100 random recipes, then 100 by SAAS-GP and noisy expected hypervolume improvement, each
trained for all 80 steps (`paper.py`, 5 seeds). Ours is what `autopeft search --objective score,params` does,
with every recipe trained to the end and with rungs at 40 and 80 steps (10 seeds each); random search is the
control. Scores come from a regression on the recording, with the noise that its repeats showed.
The reference is the paper's: a score of 0.7, and 26 % of the backbone's parameters. The hypervolume of what
was found is told without noise, and, as a search itself sees it, with noise. It goes on where it stopped, and
several processes share the work with `--part K/N`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import ttest_ind

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.intervals import interval
from lib.parts import part_of
from lib.recorded import Recorded
from lib.recording import Setting, record
from lib.replay import Ground, Trained, replay
from lib.settings import RESULTS, SETTINGS
from lib.storage import Kept

from autopeft.search.optimization.hypervolume import hypervolume_course
from autopeft.search.optimization.samplers import default_sampler
from autopeft.search.optimization.successive_halving import Rungs

if TYPE_CHECKING:
    from paper import Code

__all__ = ["main"]

REFERENCE = (0.7, 26.0)
TRIALS = 200
QUARTER = 0.25
_SIZES = ("serial_adapter.bottleneck", "parallel_adapter.bottleneck", "prefix_tuning.length")


def courses(found: Sequence[Trained]) -> dict[str, list[float]]:
    """Training steps, and the hypervolume without and with noise, after each recipe."""
    return {
        "steps": [float(t.steps) for t in found],
        "true": hypervolume_course([(t.true, 100 * t.share) for t in found], REFERENCE),
        "measured": hypervolume_course([(t.measured, 100 * t.share) for t in found], REFERENCE),
    }


def ours(ground: Ground, rungs: Rungs, sampler: str, trials: int, seed: int) -> dict[str, list[float]]:
    """Our search, with two objectives."""
    return courses(replay(ground, sampler=sampler, seed=seed, trials=trials, rungs=rungs, objectives=2))


def papers(ground: Ground, steps: int, seed: int, first: Sequence[Code] = ()) -> dict[str, list[float]]:
    """The paper's search, its random part from `first` as far as that goes."""
    from paper import Paper  # BoTorch, for this alone

    rng, found = np.random.default_rng(seed), list[Trained]()

    def evaluate(code: Code) -> tuple[float, float]:
        point = ground.repaired(values_of(code, ground))
        recipe = point.recipe.to_dict()
        measured = ground.surrogate.measured(recipe, point.hash, rng)[steps]
        counts, spent = point.counts, steps * (len(found) + 1)
        true = ground.truth(point)
        found.append(Trained(spent, measured, true, counts.deployed, counts.share, point.hash))
        return 100 * counts.share, measured

    layers = sum(p.name.startswith("layer_") for p in ground.space.parameters)
    for done in Paper(layers, evaluate, seed=seed, first=first).run():
        if done % 20 == 0:
            print(f"  paper, seed {seed}: {done} recipes", flush=True)
    return courses(found)


def values_of(code: Code, ground: Ground) -> dict[str, Any]:
    """A code of the paper as the space's values: the choices stand in the order of its codes."""
    values = {name: ground.space.parameter(name).choices[k] for name, k in zip(_SIZES, code, strict=False)}
    return values | {f"layer_{i}.on": left_out == 0 for i, left_out in enumerate(code[3:])}


def code_of(values: Mapping[str, Any], ground: Ground) -> Code:
    """The reverse of `values_of`."""
    sizes = [list(ground.space.parameter(name).choices).index(values[name]) for name in _SIZES]
    layers = sum(p.name.startswith("layer_") for p in ground.space.parameters)
    return (*sizes, *(int(not values[f"layer_{i}.on"]) for i in range(layers)))


def run(setting: Setting, recorded: Recorded, kept: Kept, part: int, parts: int) -> None:
    """Everything that is missing, the quick arms first; of `parts` seeds the one that is this part's."""
    rate = setting.learning_rate
    ground = Ground(setting.load_space(), setting.budget, recorded.spec, recorded.surrogate(), rate=rate)
    whole, halves = Rungs.of(setting.steps), Rungs.of(setting.steps, first=setting.steps // 2, eta=2)
    name = default_sampler(2)
    arms: list[tuple[str, int, Callable[[int], dict[str, list[float]]]]] = [
        ("random", 10, partial(ours, ground, whole, "random", TRIALS)),
        ("ours", 10, partial(ours, ground, whole, name, TRIALS)),
        ("ours, rungs", 10, partial(ours, ground, halves, name, TRIALS)),
        ("paper", 5, partial(papers, ground, setting.steps)),
    ]
    for arm, seeds, make in arms:
        for seed in range(part, seeds, parts):
            course = kept.get(f"{arm}/{seed}", partial(make, seed))
            print(arm, seed, course["steps"][-1], course["true"][-1], course["measured"][-1], flush=True)


def tables(kept: Kept, steps: int) -> str:
    """Markdown: hypervolume at shares of the paper's steps, and when its final one was reached."""
    budget = TRIALS * steps
    if not _arm(kept, "paper"):
        return "There is no run of the paper's way yet."
    lines = []
    for kind in ("true", "measured"):
        final = _at(kept, "paper", kind, budget)
        goal = float(np.mean(final))
        lines += [
            f"| hypervolume ({kind}) | at 12.5 % | at 25 % | at 50 % | at 100 % | "
            "25 % less the paper's end | reached the paper's mean end | steps for it (median) |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for arm in (a for a in ("paper", "ours", "ours, rungs", "random") if _arm(kept, a)):
            cells = []
            for share in (0.125, QUARTER, 0.5, 1.0):
                mean, half = interval(_at(kept, arm, kind, share * budget))
                cells.append(f"{mean:.3f} ± {half:.3f}" if _longest(kept, arm) >= share * budget else "")
            reached = [_reached(c, kind, goal) for c in _arm(kept, arm)]
            soon = sum(r <= QUARTER * budget for r in reached)
            typical = float(np.median(reached)) / budget
            cells += [
                _difference(_at(kept, arm, kind, QUARTER * budget), final),
                f"{sum(map(np.isfinite, reached))} of {len(reached)}, {soon} within 25 %",
                f"{typical:.0%}" if np.isfinite(typical) else "never",
            ]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        lines.append("")
        if kind == "true" and _arm(kept, "ours"):
            share = _share(_at(kept, "ours", kind, QUARTER * budget), final)
            lines += [f"After 25 % of the paper's steps ours has {share} of the paper's end.", ""]
    return "\n".join(lines)


def _arm(kept: Kept, arm: str) -> list[dict[str, list[float]]]:
    return [course for key, course in kept.results.items() if key.rpartition("/")[0] == arm]


def _longest(kept: Kept, arm: str) -> float:
    return max(course["steps"][-1] for course in _arm(kept, arm))


def _at(kept: Kept, arm: str, kind: str, steps: float) -> list[float]:
    """What each seed had after so many steps."""
    return [
        max((v for s, v in zip(c["steps"], c[kind], strict=True) if s <= steps), default=0.0)
        for c in _arm(kept, arm)
    ]


def _reached(course: dict[str, list[float]], kind: str, goal: float) -> float:
    """Steps until a hypervolume was reached."""
    return min((s for s, v in zip(course["steps"], course[kind], strict=True) if v >= goal), default=np.inf)


def _share(a: Sequence[float], b: Sequence[float]) -> str:
    """Ratio of the geometric means with its 95 % interval (Welch, of the logarithms)."""
    logs = np.log(a), np.log(b)
    low, high = np.exp(ttest_ind(*logs, equal_var=False).confidence_interval(0.95))
    share = np.exp(np.mean(logs[0]) - np.mean(logs[1]))
    runs = f"runs of ours: {len(a)}, of the paper: {len(b)}"
    return f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f} %; {runs})"


def _difference(a: Sequence[float], b: Sequence[float]) -> str:
    """Difference of the means with its 95 % interval (Welch)."""
    low, high = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return f"{np.mean(a) - np.mean(b):+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    parser.add_argument("--record", action="store_true", help="train what the recording lacks, then stop")
    parser.add_argument(
        "--part",
        default="0/1",
        metavar="K/N",
        help="every N-th seed or, with --record, recipe, from the K-th on",
    )
    parser.add_argument(
        "--start",
        choices=("random", "probe"),
        default="random",
        help="where heads of the recording start",
    )
    arguments = parser.parse_args()
    name = "against_autopeft" if arguments.start == "random" else f"against_autopeft, {arguments.start}"
    folder, setting = RESULTS[name], SETTINGS[name]
    if arguments.record:
        record(folder / "trials.jsonl", setting, arguments.part)
        return
    recorded = Recorded(name)
    kept = Kept(folder / "results.json", recorded.to_dict())
    print(recorded.to_dict(), flush=True)
    if not recorded.usable:
        sys.exit("No regression ranks unseen recipes well enough: nothing can be concluded from a replay.")
    if not arguments.tables:
        run(setting, recorded, kept, *part_of(arguments.part))
    print(tables(kept, setting.steps))


if __name__ == "__main__":
    main()
