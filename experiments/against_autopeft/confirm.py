"""One real run each of AutoPEFT's search and of ours on its space: did the surrogate tell the truth?

    python experiments/against_autopeft/confirm.py ours
    python experiments/against_autopeft/confirm.py paper     # needs botorch, jax, jaxlib and numpyro
    python experiments/against_autopeft/confirm.py --tables

The searches are those of `run.py` with seed 0, but every score is that of a training: 200 for the
paper's way, 100 for ours, each some 16 seconds of one core. The paper's 100 random recipes are the first 100
random ones of the recording that were trained in fp32. Trainings go to `results/confirmed.jsonl` and are not
repeated, so that a run goes on where it stopped; the courses of both are in `results/confirmed.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.recording import Trainer
from lib.replay import Ground
from lib.settings import RESULTS, SETTINGS
from lib.storage import append_row, read_rows
from run import QUARTER, TRIALS, code_of, ours, papers

from autopeft import Recipe
from autopeft.search.optimization.samplers import default_sampler
from autopeft.search.optimization.successive_halving import Rungs

__all__ = ["Real", "main"]

SETTING, FOLDER = SETTINGS["against_autopeft"], RESULTS["against_autopeft"]
SEED = 0
OURS = 100


class Real:
    """Scores of trainings, in place of a surrogate's.

    Args:
        path: JSON lines of what was trained.
        known: further trainings; those with the setting's precision and seed 0 are not repeated.
    """

    def __init__(self, path: Path, known: list[dict[str, Any]], trainer: Trainer) -> None:
        self._path, self._trainer = path, trainer
        s = trainer.setting
        self.steps = tuple(range(s.every, s.steps + 1, s.every))
        same = [r for r in known if r["precision"] == s.precision and r["seed"] == SEED]
        self._scores = {r["hash"]: r["scores"] for r in [*same, *read_rows(path)]}

    def score(self, recipe: Mapping[str, Any], key: str) -> dict[int, float]:
        """The score at each step; a training that failed has 0."""
        if key not in self._scores:
            row = self._trainer.train(Recipe.from_dict(recipe), SEED)
            append_row(self._path, {"hash": key, "seed": SEED, "recipe": dict(recipe), **row})
            self._scores[key] = row["scores"]
            print(len(self._scores), row["scores"], flush=True)
        return {step: float(self._scores[key].get(str(step), 0.0)) for step in self.steps}

    def measured(self, recipe: Mapping[str, Any], key: str, rng: np.random.Generator) -> dict[int, float]:
        """The same: there is no other noise than that of the training."""
        return self.score(recipe, key)


def run(arm: str) -> dict[str, list[float]]:
    """Steps and hypervolumes of a search whose recipes are trained."""
    trainer, rows = Trainer(SETTING), read_rows(FOLDER / "trials.jsonl")
    real = Real(FOLDER / "confirmed.jsonl", rows, trainer)
    ground = Ground(SETTING.load_space(), SETTING.budget, trainer.spec, real, rate=SETTING.learning_rate)
    if arm == "ours":
        return ours(ground, Rungs.of(SETTING.steps), default_sampler(2), OURS, SEED)
    random = [r for r in rows if r["origin"] == "random" and r["precision"] == SETTING.precision]
    first = [code_of(r["values"], ground) for r in sorted(random, key=lambda r: r["index"])[: TRIALS // 2]]
    return papers(ground, SETTING.steps, SEED, first)


def tables(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Markdown: the hypervolume of each run at shares of the paper's steps."""
    budget = TRIALS * SETTING.steps
    lines = ["| real run | at 12.5 % | at 25 % | at 50 % | at 100 % |", "|---|---|---|---|---|"]
    for arm, course in found.items():
        at = partial(_at, course)
        cells = [at(share * budget) for share in (0.125, QUARTER, 0.5, 1.0)]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _at(course: Mapping[str, list[float]], steps: float) -> str:
    if course["steps"][-1] < steps:
        return ""
    return f"{max(v for s, v in zip(course['steps'], course['measured'], strict=True) if s <= steps):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arm", nargs="?", choices=["ours", "paper", "both"], default="both")
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    arguments = parser.parse_args()
    path = FOLDER / "confirmed.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    arms = ["ours", "paper"] if arguments.arm == "both" else [arguments.arm]
    for arm in [] if arguments.tables else arms:
        course = run(arm)
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found[arm] = course
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(tables(found))


if __name__ == "__main__":
    main()
