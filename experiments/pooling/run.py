"""Should a head read the mean of all tokens, or what the model gives it?

    python experiments/pooling/run.py --part 0/2      # forty minutes of one core; beside it --part 1/2
    python experiments/pooling/run.py --tables        # the tables of the README

The head alone and LoRA of rank 12 at three rates, with each of three readings, as a quick search trains
them: 60 steps of 32 rows, the head from its probe, the backbone in bf16. What a search's own probe finds
for the cell is recorded beside them. Scores are on 400 rows of *select* and on 1,000 further rows of the
pool; *test* is never read. What stands in `results/trainings.jsonl` is not trained again.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.by_pooler import BY_POOLER, read_as
from lib.further_rows import backbone_in_bf16, encoded_with_further_rows, quick_plan, with_further_rows
from lib.measuring import note
from lib.parts import asked_part
from lib.storage import append_row, read_rows

from autopeft import Recipe
from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.search.planning.probes import find_pooling
from autopeft.training import run_trial

__all__ = ["Training", "cells", "recipe", "tables"]

RESULTS = Path(__file__).parent / "results" / "trainings.jsonl"
TASKS = ("movie-sentences", "trec", "trec-fine", "disaster-tweets", "subjectivity", "sms-spam")
ROWS, RATES, SEEDS, STEPS, SPLIT = (100, 500, 2_000), (4.5e-3, 1.5e-3, 5e-4), (0, 1), 60, 710
MODELS = ("minilm",)
POOLINGS = ("own", BY_POOLER, "mean")
"""What the model gives the head, the mean through its pooler, and the mean itself."""
HEAD = 0.0
"""Stands for the head alone where a rate of LoRA could stand."""


@dataclass(frozen=True)
class Training:
    """All that decides one training; `rate` is LoRA's, 0 for the head alone."""

    model: str
    task: str
    rows: int
    pooling: str
    rate: float
    seed: int


def recipe(training: Training) -> Recipe:
    """The head at 1e-2, as in the package's own baselines."""
    lora = [{"at": "all", "attach": [{"lora": {"rank": 12}}]}] if training.rate else []
    rates = {"learning_rate": training.rate or 1e-2, "groups": {"head": {"learning_rate": 1e-2}}}
    plain = Recipe.from_dict({"name": "lora" if lora else "head", "layers": lora, "training": rates})
    return read_as(plain, training.pooling)


def cells() -> Iterator[Training]:
    """Every training, those of the first seed before the next, and of few rows before many."""
    for model in MODELS:
        for seed in SEEDS:
            for rows in ROWS:
                for task in TASKS:
                    for pooling in POOLINGS:
                        for rate in (HEAD, *RATES):
                            yield Training(model, task, rows, pooling, rate, seed)


def measure(t: Training) -> dict[str, Any]:
    """Scores and the calibrated loss; and for the head alone what the probe of a search finds."""
    data = encoded_with_further_rows(t.task, t.rows, seed=SPLIT, model=t.model)
    plan = quick_plan(STEPS, t.seed)
    done = run_trial(backbone_in_bf16(t.task, t.model), recipe(t), data, plan, splits=("select", "test"))
    found: dict[str, Any] = {
        "select": done.scores["select"],
        "calibrated": round(done.calibrated_losses["select"], 6),
        "further": done.scores["test"],
        "step_time": done.train.step_time,
    }
    if t.rate == HEAD and t.pooling == "own":
        source = resolve_model(t.model)
        task = with_further_rows(t.task, t.rows, seed=SPLIT)
        probe = find_pooling(source, task, plan, spec_of(load_config(source)))
        found["probe"] = None if probe is None else asdict(probe)
    return found


Row = Mapping[str, Any]


def tables(rows: Sequence[Row]) -> str:
    """What there is, as Markdown: means over the seeds that all readings have."""
    return "\n".join([*_by_cell(rows), "", *_by_rows(rows)])


def _cells_of(rows: Sequence[Row]) -> dict[tuple[str, str, int], list[Row]]:
    found: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["model"], row["task"], row["rows"]].append(row)
    whole = len(POOLINGS) * (1 + len(RATES))
    return {
        key: [r for r in own if sum(o["seed"] == r["seed"] for o in own) == whole]
        for key, own in sorted(found.items())
    }


def _scores(own: Sequence[Row], pooling: str) -> tuple[float, float, float]:
    """The head alone, LoRA at the rate that users take, and at that of least calibrated loss on *select*:
    scores on further rows, means over seeds."""
    head, fixed, chosen = list[float](), list[float](), list[float]()
    for seed in sorted({r["seed"] for r in own}):
        mine = [r for r in own if r["seed"] == seed and r["pooling"] == pooling]
        lora = [r for r in mine if r["rate"]]
        head += [r["further"] for r in mine if not r["rate"]]
        fixed += [r["further"] for r in lora if r["rate"] == RATES[0]]
        chosen.append(min(lora, key=lambda r: float(r["calibrated"]))["further"])
    return tuple(100 * statistics.fmean(one) for one in (head, fixed, chosen))  # type: ignore[return-value]


def _by_cell(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | task | rows | probe | head alone | LoRA at 4.5e-3 | LoRA, rate by *select* |"
    yield "|---|---|---|---|---|---|---|"
    for (model, task, count), own in _cells_of(rows).items():
        if not own:
            continue
        scores = [_scores(own, pooling) for pooling in POOLINGS]
        told = " | ".join(" → ".join(f"{score:.1f}" for score in one) for one in zip(*scores, strict=True))
        probe = next((r["probe"] for r in own if r.get("probe")), None)
        words = "–" if probe is None else f"{probe['own']:.2f} → {probe['mean']:.2f}"
        yield f"| {model} | {task} | {count:,} | {words} | {told} |"


def _by_rows(rows: Sequence[Row]) -> Iterator[str]:
    yield "| the mean less | rows | cells | head alone | LoRA at 4.5e-3 | LoRA, rate by *select* | least |"
    yield "|---|---|---|---|---|---|---|"
    for other, words in (("own", "what the model gives"), (BY_POOLER, "the mean through the pooler")):
        for count in ROWS:
            gains = [
                [b - a for a, b in zip(_scores(own, other), _scores(own, "mean"), strict=True)]
                for (_, _, n), own in _cells_of(rows).items()
                if n == count and own
            ]
            if gains:
                means = " | ".join(f"{statistics.fmean(one):+.1f}" for one in zip(*gains, strict=True))
                least = min(gain[-1] for gain in gains)
                yield f"| {words} | {count:,} | {len(gains)} | {means} | {least:+.1f} |"


def main() -> None:
    asked = asked_part(__doc__, "task")
    names = [*Training.__dataclass_fields__]
    known = {Training(*(row[name] for name in names)) for row in read_rows(RESULTS)}
    mine = () if asked is None else TASKS[asked]
    for training in cells():
        if training in known or training.task not in mine:
            continue
        row = asdict(training) | measure(training)
        append_row(RESULTS, row)
        note(
            f"{training} {100 * row['select']:.1f} {row['calibrated']:.3f} further {100 * row['further']:.1f}"
        )
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()
