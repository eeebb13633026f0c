"""Do the highest learning rates of the default space lose a seed?

    python experiments/space_rates/run.py --part 0/2   # half an hour of one core; beside it --part 1/2
    python experiments/space_rates/run.py --tables

Each method of `search_spaces/default.yaml` alone, at the highest rate that the space gives it, as a quick
search trains: 60 steps of 32 rows, the head from its probe, three seeds. Where one of them is lost, a third
of that rate follows, until none is. A seed is lost where its score on *select* lies more than five points
below the median of the three, and all are where that median is below the head alone. Trainings are kept in
`results/trainings.jsonl`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.further_rows import backbone_in_bf16, encoded_with_further_rows, quick_plan
from lib.measuring import note
from lib.parts import asked_part
from lib.storage import append_row, read_rows

from autopeft import Recipe
from autopeft.errors import AutoPEFTError
from autopeft.training import run_trial

__all__ = ["METHODS", "lost", "recipe", "stable_rate"]

RESULTS = Path(__file__).parent / "results" / "trainings.jsonl"
ROWS, STEPS = 2_000, 60
TASKS, SPLIT, SEEDS, RATES, LOST = ("trec", "movie-sentences"), 720, (0, 1, 2), 4, 0.05
HEAD = "head alone"

METHODS: Mapping[str, tuple[float, dict[str, Any]]] = {
    "lora": (1e-2, {"rank": 12}),
    "dora": (1e-2, {"rank": 12}),
    "moslora": (1e-2, {"rank": 12}),
    "adalora": (1e-2, {"rank": 12}),
    "capaboost": (1e-2, {"rank": 12}),
    "sora": (1e-2, {"rank": 12}),
    "lora_dropout": (1e-2, {"rank": 12, "dropout": 0.3}),
    "kadaptation": (1e-2, {"rank": 4}),
    "vera": (1e-1, {"rank": 256, "sites": ["q", "v"]}),
    "serial_adapter": (1e-2, {"bottleneck": 24, "variant": "pfeiffer"}),
    "compacter": (1e-2, {"bottleneck": 48, "train_norms": False}),
    "parallel_adapter": (1e-2, {"sites": ["ffn"], "bottleneck": 24, "scale": 4.0}),
    "p_tuning_v2": (1e-1, {"length": 16, "dropout": 0.0}),
    "krona": (5e-2, {"sites": ["q", "v"]}),
    "ia3": (5e-2, {}),
    "ssf": (5e-2, {}),
    "hiwi": (1e-2, {}),
    "mov": (5e-2, {"experts": 4}),
    "prompt_tuning": (1e-1, {"length": 16}),
    "bitfit": (5e-2, {}),
    "fish_mask": (1e-2, {"keep": "0.3%", "samples": 64}),
    "pafi": (1e-2, {"keep": "0.3%"}),
    HEAD: (1e-1, {}),
}
"""The space's highest rate of each method where its size takes none larger, as it was when this was first
measured, and its options."""
_OF_THE_MODEL = ("prompt_tuning", "bitfit", "fish_mask", "pafi")


def recipe(name: str, rate: float) -> Recipe:
    """A method alone at a rate; the head learns at 1e-2, alone at the rate itself."""
    training = {"learning_rate": rate, "groups": {"head": {"learning_rate": 1e-2}}}
    told: dict[str, Any] = {"autopeft": 2, "name": name.replace(" ", "-"), "training": training}
    options = METHODS[name][1]
    if name == HEAD:
        training["groups"] = {"head": {"learning_rate": rate}}
    elif name in _OF_THE_MODEL:
        told["model"] = [{name: options}]
    else:
        told["layers"] = [{"at": "all", "attach": [{name: options}]}]
    return Recipe.from_dict(told)


def rates_of(name: str) -> list[float]:
    """The highest rate, and each a third of the one before."""
    return [float(f"{METHODS[name][0] / 3**i:.3g}") for i in range(RATES)]


def measure(task: str, name: str, rate: float, seed: int) -> float:
    """Score on *select*; that of a training which ends with an error is 0."""
    data = encoded_with_further_rows(task, ROWS, seed=SPLIT)
    plan = quick_plan(STEPS, seed)
    try:
        return run_trial(backbone_in_bf16(task), recipe(name, rate), data, plan).scores["select"]
    except AutoPEFTError as error:
        note(f"{task} {name} {rate:g} {seed}: {error}")
        return 0.0


def lost(scores: Sequence[float], floor: float) -> int:
    """How many of the seeds are lost: far below their median, or all where that is below `floor`."""
    median = statistics.median(scores)
    return len(scores) if median < floor else sum(score < median - LOST for score in scores)


Scores = Mapping[tuple[str, str, float], Mapping[int, float]]


def _scores(rows: Sequence[Mapping[str, Any]]) -> Scores:
    found: dict[tuple[str, str, float], dict[int, float]] = {}
    for row in rows:
        found.setdefault((row["task"], row["method"], row["rate"]), {})[row["seed"]] = row["select"]
    return found


def _floor(known: Scores, task: str) -> float:
    """What the head alone reaches at its best recorded rate, less what a seed may be off."""
    heads = [
        statistics.median(own.values()) for (t, name, _), own in known.items() if (t, name) == (task, HEAD)
    ]
    return max(heads, default=0.0) - LOST


def stable_rate(known: Scores, name: str) -> float | None:
    """The highest rate that loses no seed on any task; `None` where none of those recorded does."""
    for rate in rates_of(name):
        told = [(known.get((task, name, rate), {}), _floor(known, task)) for task in TASKS]
        if all(len(own) == len(SEEDS) and not lost(list(own.values()), floor) for own, floor in told):
            return rate
    return None


def run(names: Sequence[str]) -> None:
    """Train what is missing, from the highest rate down."""
    for name in names:
        for rate in rates_of(name):
            if stable_rate(_scores(read_rows(RESULTS)), name) is not None:
                break
            for task in TASKS:
                known = _scores(read_rows(RESULTS)).get((task, name, rate), {})
                for seed in set(SEEDS) - set(known):
                    row = {"task": task, "method": name, "rate": rate, "seed": seed}
                    append_row(RESULTS, row | {"select": measure(task, name, rate, seed)})
                found = _scores(read_rows(RESULTS))[task, name, rate]
                note(f"{task} {name} {rate:g}: {' '.join(f'{100 * v:.1f}' for v in found.values())}")


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What there is, as Markdown."""
    known = _scores(rows)
    lines = [
        "| method | the space's highest rate | loses no seed at | " + " | ".join(TASKS) + " |",
        "|---|---|---|" + "---|" * len(TASKS),
    ]
    for name in METHODS:
        cells = []
        for task in TASKS:
            told = [
                f"{rate:g}: {100 * statistics.median(own.values()):.1f} (worst {100 * min(own.values()):.1f})"
                for rate in rates_of(name)
                if (own := known.get((task, name, rate)))
            ]
            cells.append("; ".join(told) or "–")
        rate = stable_rate(known, name)
        told_rate = "–" if rate is None else f"{rate:g}"
        lines.append(f"| {name} | {METHODS[name][0]:g} | {told_rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    asked = asked_part(__doc__, "method")
    if asked is not None:
        run([HEAD, *[name for name in METHODS if name != HEAD][asked]])
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()
