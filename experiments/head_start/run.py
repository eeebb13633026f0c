"""Random head against probed head: how much seeds differ, and what few rows make of it.

    python experiments/head_start/run.py                    # four hours of one core; goes on where it stopped
    python experiments/head_start/run.py --part spread      # the first question alone
    python experiments/head_start/run.py --tables

`spread`: six recipes, those among them that collapsed from random heads, at 2,000 training rows with four
seeds of everything. `few`: four recipes at 60, 100, 200 and 500 rows, each trained from both starts with the
same seed and the same rows (another draw of rows for each seed). The heads of both read the first token.
`few-mean`: the same where heads read the mean of all tokens past the pooler, as those of a search do. `long`:
200 and 500 steps with such heads, where the start should matter least.

Backbone in bf16, 60 steps of 32 (120 for `trec-fine`), scored on *test*. Trainings are kept in
`results/trials.jsonl` by all that decides them. `results/full_length.jsonl` has trainings from probes whose
weights were not shortened; the last table compares them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.intervals import stratified
from lib.measuring import note
from lib.storage import append_row, read_rows

from autopeft import Recipe, load_task
from autopeft.assets import load_config, load_tokenizer, resolve_model
from autopeft.assets.heads import reset_head
from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.recipe.pooling import pooling_of
from autopeft.tasks import Rows
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.contexts import head_kept
from autopeft.training.head_start import start_head

__all__ = ["RECIPES", "Training", "collapses", "differences", "needed", "pooled"]

TRIALS = Path(__file__).parent / "results" / "trials.jsonl"
FULL_LENGTH = TRIALS.with_name("full_length.jsonl")
MODEL, LENGTH, BATCH = "minilm", 64, 32
STARTS = ("random", "probe")
STEPS = {"trec": 60, "movie-sentences": 60, "trec-fine": 120}
FULL, FEW = 2_000, (60, 100, 200, 500)
COLLAPSE = 0.05  # below the median of its recipe


def _recipe(attach: list[Any], rate: float, at: Any = "all", **groups: float) -> dict[str, Any]:
    rates = {name: {"learning_rate": value} for name, value in {"head": 1e-3, **groups}.items()}
    return {"layers": [{"at": at, "attach": attach}], "training": {"learning_rate": rate, "groups": rates}}


def _adapter(method: str, bottleneck: int, **options: Any) -> dict[str, Any]:
    return {method: {"bottleneck": bottleneck, **options}}


_BARE_PREFIX = {"p_tuning_v2": {"length": 8}}
RECIPES: dict[str, dict[str, Any]] = {
    "lora": _recipe([{"lora": {"rank": 12}}], 4.5e-3),
    "lora, head at 1e-2": _recipe([{"lora": {"rank": 12}}], 4.5e-3, head=1e-2),
    # An earlier search's winner on the upper half, which collapsed with other seeds.
    "upper half": _recipe(
        [
            {"lora": {"rank": 4, "sites": ["q", "v"]}},
            _adapter("serial_adapter", 16),
            _adapter("parallel_adapter", 16, scale=2.0),
            _BARE_PREFIX,
        ],
        8.6e-3, [3, 4, 5], p_tuning_v2=1.5e-3,
    ),
    "lora + parallel + prefix": _recipe(
        [{"lora": {"rank": 4, "sites": ["q", "v"]}}, _adapter("parallel_adapter", 8), _BARE_PREFIX],
        5e-3, p_tuning_v2=3e-2,
    ),
    "lora + krona + ia3": _recipe(
        [{"lora": {"rank": 8, "sites": ["q", "v"]}}, {"krona": {"sites": ["up", "down"]}}, "ia3"],
        4.5e-3, krona=1e-2, ia3=1e-2, head=1e-2,
    ),
    "krona": _recipe([{"krona": {"sites": ["q", "v"]}}], 1e-2),
    "lora on the last three": _recipe([{"lora": {"rank": 24}}], 4.5e-3, [3, 4, 5]),
}  # fmt: skip
SPREAD = (
    "lora",
    "lora, head at 1e-2",
    "upper half",
    "lora + parallel + prefix",
    "lora + krona + ia3",
    "krona",
)
SMALL = ("lora", "lora, head at 1e-2", "lora on the last three", "lora + krona + ia3")
SMALL_MEAN = ("lora, head at 1e-2", "lora on the last three", "lora + krona + ia3", "lora")
LONG = {200: ("lora, head at 1e-2", "lora + krona + ia3"), 500: ("lora, head at 1e-2",)}
PARTS = ("spread", "few", "few-mean", "long")
READ_MEAN = ("few-mean", "long")


@dataclass(frozen=True)
class Training:
    """All that decides one training; `hash` is the recipe's."""

    part: str
    task: str
    rows: int
    steps: int
    recipe: str
    hash: str
    start: str
    seed: int


def needed(part: str) -> Iterator[Training]:
    """The trainings of a part, both starts of a pair side by side."""

    for seed, (task, rows, steps, recipe) in _cells(part):
        for start in STARTS:
            yield Training(part, task, rows, steps, recipe, _hash(recipe, part in READ_MEAN), start, seed)


def _cells(part: str) -> Iterator[tuple[int, tuple[str, int, int, str]]]:
    """The seed of each pair, and its task, rows, steps and recipe."""
    if part == "spread":
        for seed, (task, steps), recipe in product(range(4), STEPS.items(), SPREAD):
            yield seed, (task, FULL, steps, recipe)
    elif part == "few":
        for seed, (task, steps), rows, recipe in product(range(3), STEPS.items(), FEW, SMALL):
            yield seed, (task, rows, steps, recipe)
    elif part == "few-mean":  # recipe by recipe, so that each is whole where the rest is not recorded
        for recipe, seed, (task, steps), rows in product(SMALL_MEAN, range(3), STEPS.items(), FEW):
            yield seed, (task, rows, steps, recipe)
    else:
        for steps, recipes in LONG.items():
            for recipe, seed, task in product(recipes, range(3), ("trec", "movie-sentences")):
                yield seed, (task, FULL, steps, recipe)


def recipe_of(name: str, read_mean: bool) -> Recipe:
    """A recipe by its name, with a head that reads the first token or the mean of all."""
    model = {"model": [{"mean_pooling": {"pooler": False}}]} if read_mean else {}
    return Recipe.from_dict({"name": "measured", **RECIPES[name], **model})


@lru_cache
def _hash(name: str, read_mean: bool) -> str:
    spec = spec_of(load_config(resolve_model(MODEL)))
    return build_graph(recipe_of(name, read_mean), spec).trial_hash()


@lru_cache(maxsize=1)
def _model(task: str) -> Any:
    kind = load_task(task)
    return kind.task_kind.head.load_model(resolve_model(MODEL), kind.labels, dtype=torch.bfloat16)


@lru_cache(maxsize=1)
def _data(task: str, rows: int, seed: int) -> EncodedTask:
    chosen = load_task(task, rows=Rows(train=rows, select=400, test=1_000), seed=seed)
    return encode(chosen, load_tokenizer(resolve_model(MODEL)), LENGTH)


def measure(training: Training, known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores of one training and its CPU seconds.

    Where the probe is not used, the training from a random head is the same one, number for number, and is
    not done twice.
    """
    t = training
    # Few rows are another draw for each seed; the whole is the same for all.
    data = _data(t.task, t.rows, t.seed if t.rows < FULL else 0)
    plan = TrainingPlan(
        steps=t.steps, batch_size=BATCH, max_length=LENGTH, seed=t.seed, device="cpu", head_start=t.start
    )
    if t.start == "probe" and not _probed(t, data, plan):
        alike = asdict(replace(t, start="random"))
        same = next(row for row in known if all(row[key] == value for key, value in alike.items()))
        return {"scores": same["scores"], "cpu_seconds": same["cpu_seconds"], "probed": False}
    before = time.process_time()
    recipe = recipe_of(t.recipe, t.part in READ_MEAN)
    done = run_trial(_model(t.task), recipe, data, plan, splits=("select", "test"))
    return {"scores": dict(done.scores), "cpu_seconds": round(time.process_time() - before, 2)}


def _probed(training: Training, data: EncodedTask, plan: TrainingPlan) -> bool:
    """Whether the probe knows enough to be used."""
    model = _model(training.task)
    with head_kept(model):
        reset_head(model, training.seed)
        reading = pooling_of(recipe_of(training.recipe, training.part in READ_MEAN))
        return start_head(model, data, plan, pooling=reading) is not None


# Tables
# ---------------------------------------------------------------------------------------------------------


def pooled(groups: Sequence[Sequence[float]]) -> float:
    """The standard deviation inside groups, pooled over them."""
    degrees = sum(len(g) - 1 for g in groups)
    squares = sum(statistics.variance(g) * (len(g) - 1) for g in groups if len(g) > 1)
    return float((squares / degrees) ** 0.5) if degrees else float("nan")


def collapses(groups: Sequence[Sequence[float]]) -> int:
    """How many values lie far below the median of their group."""
    return sum(value < statistics.median(g) - COLLAPSE for g in groups for value in g)


def differences(rows: Sequence[dict[str, Any]], split: str = "test") -> dict[tuple[str, str], list[float]]:
    """Probe less random of each pair, by task and recipe."""
    scores: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        key = (row["task"], row["recipe"], row["rows"], row["steps"], row["seed"])
        scores.setdefault(key, {})[row["start"]] = row["scores"][split]
    found: dict[tuple[str, str], list[float]] = {}
    for (task, recipe, *_), pair in scores.items():
        if len(pair) == len(STARTS):
            found.setdefault((task, recipe), []).append(pair["probe"] - pair["random"])
    return found


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """What the trainings say, as Markdown."""
    lines = ["| task | recipe | random | probe |", "|---|---|---|---|"]
    spread = [r for r in rows if r["part"] == "spread"]
    groups: dict[str, list[list[float]]] = {start: [] for start in STARTS}
    for task in STEPS:
        for recipe in SPREAD:
            told = []
            for start in STARTS:
                found = [
                    r["scores"]["test"]
                    for r in spread
                    if (r["task"], r["recipe"], r["start"]) == (task, recipe, start)
                ]
                if len(found) > 1:
                    groups[start].append(found)
                    told.append(
                        f"{100 * statistics.fmean(found):.1f} (sd {100 * statistics.stdev(found):.1f})"
                    )
            if len(told) == len(STARTS):
                lines.append(f"| {task} | {recipe} | {told[0]} | {told[1]} |")
    for start, found in groups.items():
        lines.append(f"\n{start}: pooled sd {100 * pooled(found):.2f} points, {collapses(found)} collapsed.")
    lines += [
        "",
        "| head reads | rows | steps | pairs | with a probe | probe less random, points | lower 95 % bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in ("few", "spread", "few-mean", "long"):
        lines += _pairs(part, [row for row in rows if row["part"] == part])
    return "\n".join(
        [*lines, "", *_by_recipe("few", rows), "", *_by_recipe("few-mean", rows), "", *_lengths(rows)]
    )


def _pairs(part: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the probe gains with so many rows and steps."""
    apart = part == "long"
    for size, steps in dict.fromkeys((row["rows"], row["steps"] if apart else 0) for row in rows):
        chosen = [r for r in rows if r["rows"] == size and (not apart or r["steps"] == steps)]
        found = list(differences(chosen).values())
        if not found:
            continue
        used = sum(row["start"] == "probe" and row.get("probed", True) for row in chosen)
        mean, half = (100 * value for value in stratified(found))
        pairs = sum(map(len, found))
        yield (
            f"| {_read(part)} | {size:,} | {steps or '60, 120'} | {pairs} | {used} | "
            f"{mean:+.1f} ± {half:.1f} | {mean - half:+.1f} |"
        )


def _read(part: str) -> str:
    return "mean" if part in READ_MEAN else "first token"


def _by_recipe(part: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What each recipe gains with few rows: the most of them where heads read the first token, as the probe
    begins to be used there, and all that were told apart where they read the mean."""
    sizes = FEW[-1:] if part == "few" else FEW
    found: dict[tuple[int, str], list[float]] = {}
    for size in sizes:
        chosen = [row for row in rows if row["part"] == part and row["rows"] == size]
        for (_, recipe), values in differences(chosen).items():
            found.setdefault((size, recipe), []).extend(100 * value for value in values)
    yield f"| {_read(part)}: rows | recipe | pairs | probe less random: mean, worst |"
    yield "|---|---|---|---|"
    for (size, recipe), values in found.items():
        yield f"| {size} | {recipe} | {len(values)} | {statistics.fmean(values):+.1f}, {min(values):+.1f} |"


def _lengths(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is gained over random heads, from probes of full length and from shortened ones."""
    keys = ("part", "task", "rows", "steps", "recipe", "hash", "seed")
    known = {(row["start"], *(row[key] for key in keys)): row["scores"]["test"] for row in rows}
    gains: dict[int, list[tuple[float, float]]] = {}
    for row in read_rows(FULL_LENGTH):
        key = tuple(row[key] for key in keys)
        random, probe = known.get(("random", *key)), known.get(("probe", *key))
        if random is not None and probe is not None and probe != random:
            pair = (100 * (row["scores"]["test"] - random), 100 * (probe - random))
            gains.setdefault(row["rows"], []).append(pair)
    yield "| rows | pairs | full length: mean, worst | shortened: mean, worst |"
    yield "|---|---|---|---|"
    for size, pairs in sorted(gains.items()):
        told = [f"{statistics.fmean(own):+.1f}, {min(own):+.1f}" for own in zip(*pairs, strict=True)]
        yield f"| {size:,} | {len(pairs)} | {told[0]} | {told[1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = {tuple(row[k] for k in Training.__dataclass_fields__) for row in read_rows(TRIALS)}
    for part in [] if given.tables else given.part or PARTS:
        for training in needed(part):
            row = asdict(training)
            if tuple(row.values()) in known:
                continue
            row |= measure(training, read_rows(TRIALS))
            append_row(TRIALS, row)
            t = training
            note(f"{t.task:16} {t.rows:5} {t.recipe:26} {t.start:7} {t.seed} {row['scores']['test']:.4f}")
    print(tables(read_rows(TRIALS)))


if __name__ == "__main__":
    main()
