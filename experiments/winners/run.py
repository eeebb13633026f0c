"""Five searches on each of two tasks, and what their winners are worth on the other one.

    python experiments/winners/run.py            # goes on where it stopped; some 100 minutes on two cores
    python experiments/winners/run.py --tables

Each search tries 15 recipes at 0.5 % with a seed of its own (which also splits the data); the space is the
one that the samplers were compared in (`../samplers/space.yaml`, `default.yaml` as it was then). The best two
are retrained with three fresh seeds, and the winner is compared on *test* with every baseline. Then it is
trained as a fixed recipe on the other task, on the rows, splits and seeds of the search there, beside whose
baselines it is put.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.searches import finished_search
from lib.storage import write_whole
from lib.worker import run_here
from tables import TASKS, tables

from autopeft.search.core.jobs import TrainJob
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare, worker_setup
from autopeft.search.selection.contender import fresh_seeds

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results" / "results.json", HERE / "runs"
SEEDS = range(5)
SPACE = HERE.parent / "samplers" / "space.yaml"
SETTING: dict[str, Any] = {
    "budget": "0.5%", "trials": 15, "steps": 60, "baselines": "all", "space": str(SPACE), "effort": "quick",
    **SearchArguments.before,
}  # fmt: skip


def searched(task: str, seed: int) -> dict[str, Any]:
    """The outcome of a search, run or taken up where that is needed."""
    out = RUNS / f"{task}-{seed}"
    found = finished_search(out, task=task, seed=seed, **SETTING)
    kept = (
        "recipe",
        "counts",
        "select",
        "test",
        "comparisons",
        "selection_bias",
        "baselines",
        "trials",
        "seconds",
    )
    return {key: found[key] for key in kept}


def transferred(recipe: dict[str, Any], task: str, seed: int) -> list[float]:
    """Test scores of a fixed recipe on a task, with the fresh seeds of the search there."""
    ready = prepare(SearchArguments(task=task, seed=seed, **SETTING))
    steps = ready.effort.steps
    jobs = [
        TrainJob(f"s{fresh}", "baseline", "transfer", recipe, fresh, steps, splits=("test",))
        for fresh in fresh_seeds(seed, ready.effort.seeds)
    ]
    return [result.scores["test"] for result in run_here(worker_setup(ready), *jobs)]


def run(results: dict[str, Any]) -> None:
    """Everything that is missing; each outcome is written before the next begins."""
    for seed in SEEDS:
        for task in TASKS:
            if f"{task}/{seed}" not in results:
                results[f"{task}/{seed}"] = searched(task, seed)
                _write(results)
        for task, other in (TASKS, TASKS[::-1]):
            if "transfer" not in (found := results[f"{task}/{seed}"]):
                found["transfer"] = transferred(found["recipe"], other, seed)
                _write(results)


def _write(results: dict[str, Any]) -> None:
    write_whole(RESULTS, json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not parser.parse_args().tables:
        run(results)
    print(tables(results))


if __name__ == "__main__":
    main()
