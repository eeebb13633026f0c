"""Backbones in bf16 against fp32: how far gradients differ, and where trainings end.

    python experiments/precision/run.py               # two hours of one core; goes on where it stopped
    python experiments/precision/run.py --tables

For each backbone what a search measures before its first trial (`autopeft.training.precision`), and pairs of
trainings that differ in nothing but the precision of the backbone: LoRA and a hybrid, up to three seeds,
scored on *select*. Trainings are kept in `results/trainings.jsonl`, probes in `results/probes.jsonl`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.intervals import interval
from lib.measuring import note
from lib.storage import append_row, read_rows

from autopeft import Recipe, load_task
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.assets.precision import dtype_of
from autopeft.tasks import Rows
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.precision import probe_precision

__all__ = ["SETTINGS", "Setting", "Training", "differences", "needed"]

TRAININGS = Path(__file__).parent / "results" / "trainings.jsonl"
PROBES = TRAININGS.with_name("probes.jsonl")
PRECISIONS = ("fp32", "bf16")


def _recipe(attach: list[Any], **groups: float) -> dict[str, Any]:
    rates = {name: {"learning_rate": rate} for name, rate in groups.items()}
    layers = [{"at": "all", "attach": attach}]
    return {"name": "measured", "layers": layers, "training": {"learning_rate": 4.5e-3, "groups": rates}}


_MIX = [{"lora": {"rank": 8}}, {"krona": {"sites": ["up", "down"]}}, "ia3"]
RECIPES = {
    "lora": _recipe([{"lora": {"rank": 12}}], head=1e-2),
    "lora + krona + ia3": _recipe(_MIX, krona=1e-2, ia3=1e-2, head=1e-2),
}


@dataclass(frozen=True)
class Setting:
    """A backbone, what it is trained on, and how long; rows are those of train and select."""

    model: str
    task: str
    train: int
    select: int
    length: int
    batch: int
    steps: int
    seeds: int


SETTINGS = (  # what a step takes decides how many seeds there are
    Setting("minilm", "trec", 2_000, 1_000, 64, 32, 60, 3),
    Setting("smollm2-135m", "gym:chain_sum", 400, 200, 128, 8, 40, 3),
    Setting("mpnet-base", "trec", 2_000, 1_000, 64, 16, 60, 1),
)


@dataclass(frozen=True)
class Training:
    """All that decides one training."""

    model: str
    recipe: str
    seed: int
    precision: str


def needed() -> Iterator[tuple[Setting, Training]]:
    """The trainings, both of a pair side by side."""
    for setting in SETTINGS:
        for seed in range(setting.seeds):
            for recipe in RECIPES:
                for precision in PRECISIONS:
                    yield setting, Training(setting.model, recipe, seed, precision)


@lru_cache(maxsize=2)
def _model(setting: Setting, precision: str) -> Any:
    task = _data(setting).task
    return task.task_kind.head.load_model(
        resolve_model(setting.model), task.labels, dtype=dtype_of(precision)
    )


@lru_cache(maxsize=1)
def _data(setting: Setting) -> EncodedTask:
    own = {} if setting.task.startswith("gym:") else {"stand_in": False}
    rows = Rows(train=setting.train, select=setting.select, test=100)
    task = load_task(setting.task, rows=rows, seed=0, **own)
    return encode(task, load_tokenizer(resolve_model(setting.model)), setting.length)


def _plan(setting: Setting, seed: int) -> TrainingPlan:
    return TrainingPlan(
        steps=setting.steps, batch_size=setting.batch, max_length=setting.length, seed=seed, device="cpu"
    )


def measure(setting: Setting, training: Training) -> dict[str, Any]:
    """One training as a row."""
    model, before = _model(setting, training.precision), time.process_time()
    recipe = Recipe.from_dict(RECIPES[training.recipe])
    done = run_trial(model, recipe, _data(setting), _plan(setting, training.seed), splits=("select",))
    return {
        **asdict(training),
        "score": round(done.scores["select"], 6),
        "loss": round(done.losses["select"], 6),
        "cpu_seconds": round(time.process_time() - before, 1),
    }


def probe(setting: Setting) -> dict[str, Any]:
    """What a search measures of a backbone."""
    found = probe_precision(lambda p: _model(setting, p), _data(setting), _plan(setting, 0))
    assert found is not None
    return {"model": setting.model, **{k: round(v, 5) for k, v in asdict(found).items()}}


# Tables
# ---------------------------------------------------------------------------------------------------------


def differences(rows: Sequence[dict[str, Any]], model: str, key: str) -> list[float]:
    """bf16 less fp32 of each pair."""
    found = {(r["recipe"], r["seed"], r["precision"]): r[key] for r in rows if r["model"] == model}
    pairs = [(r, s) for r, s, p in found if p == "bf16" and (r, s, "fp32") in found]
    return [found[r, s, "bf16"] - found[r, s, "fp32"] for r, s in pairs]


def _spread(rows: Sequence[dict[str, Any]], model: str) -> float:
    """Standard deviation of the losses of seeds in fp32, pooled over recipes; not a number where none has two
    seeds."""
    losses = [
        [r["loss"] for r in rows if (r["model"], r["recipe"], r["precision"]) == (model, recipe, "fp32")]
        for recipe in RECIPES
    ]
    variances = [statistics.variance(x) for x in losses if len(x) > 1]
    return statistics.fmean(variances) ** 0.5 if variances else math.nan


def tables(rows: Sequence[dict[str, Any]], probes: Sequence[dict[str, Any]]) -> str:
    """What gradients and trainings say of each backbone."""
    lines = [
        "| backbone | gradients differ by | batches differ by | fp32/bf16, time of a step | pairs |"
        " loss: bf16 less fp32 | between seeds | score: bf16 less fp32, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in probes:
        model = found["model"]
        loss, score = differences(rows, model, "loss"), differences(rows, model, "score")
        told = "– | – | –"
        if len(loss) > 1:
            (loss_mean, loss_half), (mean, half) = interval(loss), interval(score)
            told = (
                f"{loss_mean:+.3f} ± {loss_half:.3f} | {_spread(rows, model):.3f} "
                f"| {100 * mean:+.1f} ± {100 * half:.1f}"
            )
        lines.append(
            f"| {model} | {100 * found['error']:.1f} % | {100 * found['noise']:.0f} % "
            f"| {found['fp32'] / found['bf16']:.2f} | {len(loss)} | {told} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.tables:
        known = {tuple(row[k] for k in Training.__dataclass_fields__) for row in read_rows(TRAININGS)}
        probed = {row["model"] for row in read_rows(PROBES)}
        for setting, training in needed():
            if setting.model not in probed:
                append_row(PROBES, probe(setting))
                probed.add(setting.model)
            if tuple(asdict(training).values()) not in known:
                row = measure(setting, training)
                append_row(TRAININGS, row)
                note(str(row))
    print(tables(read_rows(TRAININGS), read_rows(PROBES)))


if __name__ == "__main__":
    main()
