"""Cross-attention tuning on translations, by a pretrained T5 of `run.py`: what training it alone is worth.

    python experiments/backbones/cross_attention.py --model ~/t5-tiny             # goes on where it stopped
    python experiments/backbones/cross_attention.py --model ~/t5-tiny --dry-run   # what would be trained
    python experiments/backbones/cross_attention.py --tables

English into Spanish (`tatoeba-en-es`): the decoder's cross-attention whole, with the embeddings as well, LoRA
with about as many parameters in the same maps and in all attention, and rows of the FFN (`far`). Each at two
rates on *select* with seed 0, then two further seeds at the better one. Trainings are kept in
`results/cross_attention.jsonl` by what decides them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note
from lib.storage import append_row, read_rows

from autopeft import Recipe, attach, load_task
from autopeft.assets import load_config, load_tokenizer, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.tasks import Rows
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, run_trial
from autopeft.training.scoring import score_by_rows

__all__ = ["RECIPES", "Training", "missing", "recipe_of", "tables"]

FILE = Path(__file__).parent / "results" / "cross_attention.jsonl"
TASK, LENGTH, BATCH, SEEDS = "tatoeba-en-es", 48, 32, 3
ROWS = Rows(train=4_000, select=500, test=500)
RATES = (1e-3, 3e-3)
UNTUNED = "nothing"
_PUBLISHED = {"betas": [0.9, 0.98], "epsilon": 1e-6}

# name → (level, item); ranks and retention give all but the second about the size of the first.
RECIPES: dict[str, tuple[str, Any]] = {
    "cross-attention": ("model", "xattn_tuning"),
    "cross-attention and embeddings": ("model", {"xattn_tuning": {"embeddings": "both"}}),
    "lora, cross-attention": (
        "layers",
        {"lora": {"rank": 128, "sites": ["cross_q", "cross_k", "cross_v", "cross_o"]}},
    ),
    "lora, all attention": (
        "layers",
        {"lora": {"rank": 85, "sites": ["q", "v", "cross_q", "cross_v"]}},
    ),
    "far": ("layers", {"far": {"retention": 0.25}}),
}


@dataclass(frozen=True)
class Training:
    """All that decides one training, beside the backbone."""

    recipe: str
    rate: float
    seed: int
    steps: int


def recipe_of(training: Training) -> Recipe:
    """The recipe, trained as the authors of cross-attention tuning do, but for rate and schedule."""
    level, item = RECIPES[training.recipe]
    body = {level: [item] if level == "model" else [{"attach": [item]}]}
    section = {"learning_rate": training.rate, "dropout": True, "optimizer": _PUBLISHED}
    return Recipe.from_dict({"name": "measured", **body, "training": section})


def missing(rows: Sequence[Mapping[str, Any]], steps: int) -> Iterator[Training]:
    """What is still to be trained, as far as what is known decides it: rates first, then further seeds."""
    known = {tuple(row[k] for k in Training.__dataclass_fields__): row["score"] for row in rows}
    for recipe in RECIPES:
        swept = [Training(recipe, rate, 0, steps) for rate in RATES]
        lacking = [t for t in swept if tuple(asdict(t).values()) not in known]
        yield from lacking
        if not lacking:
            best = max(swept, key=lambda t: known[tuple(asdict(t).values())])
            further = (Training(recipe, best.rate, seed, steps) for seed in range(1, SEEDS))
            yield from (t for t in further if tuple(asdict(t).values()) not in known)


def measure(bench: tuple[Any, Any], training: Training) -> dict[str, Any]:
    """One training as a row."""
    model, data = bench
    plan = TrainingPlan(
        steps=training.steps, batch_size=BATCH, max_length=LENGTH, seed=training.seed, device="cpu"
    )
    before = time.process_time()
    done = run_trial(model, recipe_of(training), data, plan, splits=("select",))
    return {
        **asdict(training),
        "score": round(done.scores["select"], 6),
        "loss": round(done.losses["select"], 6),
        "deployed": done.counts.deployed,
        "cpu_seconds": round(time.process_time() - before, 1),
    }


def untuned(bench: tuple[Any, Any]) -> dict[str, Any]:
    """The backbone as it is, as a row."""
    model, data = bench
    with attach(model, Recipe.from_dict({"name": "untuned"})) as hybrid:
        found = score_by_rows(hybrid.model, data.select, "likelihood")
    told = {"recipe": UNTUNED, "rate": 0.0, "seed": 0, "steps": 0, "deployed": 0}
    return {**told, "score": round(found.score, 6), "loss": round(float(found.loss or 0.0), 6)}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the better rate of each recipe and the mean over its seeds on *select*."""
    headers = ("trained", "deployed", "rate", "likelihood, mean ± sd", "loss of a token", "seeds")
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    for row in rows:
        if row["recipe"] == UNTUNED:
            lines.append(f"| {UNTUNED} | 0 |  | {row['score']:.4f} | {row['loss']:.3f} |  |")
    for recipe in RECIPES:
        own = [row for row in rows if row["recipe"] == recipe]
        by_rate = {rate: [r["score"] for r in own if r["rate"] == rate] for rate in RATES}
        found = [(rate, scores) for rate, scores in by_rate.items() if scores]
        if found:
            rate, scores = max(found, key=lambda f: (len(f[1]), statistics.mean(f[1])))
            sd = statistics.stdev(scores) if len(scores) > 1 else 0.0
            score = f"{statistics.mean(scores):.4f} ± {sd:.4f}"
            loss = statistics.mean(row["loss"] for row in own if row["rate"] == rate)
            cells = (recipe, f"{own[0]['deployed']:,}", f"{rate:g}", score, f"{loss:.3f}", str(len(scores)))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plan_text(folder: str, steps: int) -> str:
    spec = spec_of(load_config(resolve_model(folder)))
    lines = []
    for training in missing(read_rows(FILE), steps):
        deployed = count(recipe_of(training), spec).deployed
        lines.append(
            f"{training.recipe}: {deployed:,} parameters, rate {training.rate:g}, seed {training.seed}, "
            f"{steps} steps"
        )
    return "\n".join([*lines, f"{len(lines)} trainings, and two further seeds of each recipe's better rate"])


def _bench(folder: str) -> tuple[Any, Any]:
    source = resolve_model(folder, notify=note)
    task = load_task(TASK, kind="seq2seq", rows=ROWS, seed=0, notify=note)
    data = encode(task, load_tokenizer(source), LENGTH)
    return task.task_kind.head.load_model(source, task.labels), data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of the backbone, from run.py")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, train nothing")
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    given = parser.parse_args()
    if given.tables:
        print(tables(read_rows(FILE)))
        return
    if given.model is None:
        raise SystemExit("Name the folder of a backbone with --model; run.py makes one.")
    if given.dry_run:
        print(_plan_text(given.model, given.steps))
        return
    bench = _bench(given.model)
    if all(row["recipe"] != UNTUNED for row in read_rows(FILE)):
        append_row(FILE, untuned(bench))
    while (training := next(missing(read_rows(FILE), given.steps), None)) is not None:
        row = measure(bench, training)
        append_row(FILE, row)
        note(str(row))
    print(tables(read_rows(FILE)))


if __name__ == "__main__":
    main()
