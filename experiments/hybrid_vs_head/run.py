"""A hybrid of five families against the head alone, on MiniLM.

    python experiments/hybrid_vs_head/run.py             # about 15 minutes on one core
    python experiments/hybrid_vs_head/run.py --tables

Trains `hybrid.yaml` (LoRA, prefix, serial adapter, (IA)³ and a FISH mask at once) and the head alone, on
1,600 rows of each task for 150 steps of 32, with three seeds; prints accuracy on the test split and writes
`results/results.json`. Finished runs are kept by (task, recipe hash, seed, plan) and not repeated. Learning
rates were set beforehand and are not tuned here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autopeft import Recipe, load_task
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.tasks import Rows
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, run_trial

HERE = Path(__file__).parent
TASKS = ("movie-sentences", "trec")


def measure(
    results: Path, *, tasks: tuple[str, ...] = TASKS, seeds: int = 3, steps: int = 150
) -> list[dict[str, Any]]:
    """Train what is missing in `results` and return every row."""
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    done = {r["key"] for r in rows}
    hybrid = Recipe.from_file(HERE / "hybrid.yaml")
    recipes = {
        "hybrid": hybrid,
        "head-only": Recipe(name="head-only", training=hybrid.training.model_copy(update={"groups": {}})),
    }
    source = resolve_model("minilm", notify=print)
    tokenizer = load_tokenizer(source)
    for name in tasks:
        task = load_task(name, rows=Rows(train=1600), notify=print)
        data = encode(task, tokenizer, 64)
        model = task.task_kind.head.load_model(source, task.labels)
        for seed in range(seeds):
            for label, recipe in recipes.items():
                key = f"{name}/{recipe.hash()[:16]}/{seed}/{steps}"
                if key in done:
                    continue
                plan = TrainingPlan(steps=steps, batch_size=32, max_length=64, seed=seed)
                outcome = run_trial(model, recipe, data, plan, splits=("test",))
                rows.append(
                    {
                        "key": key,
                        "task": name,
                        "what": label,
                        "seed": seed,
                        "steps": steps,
                        "test": outcome.scores["test"],
                        "deployed": outcome.counts.deployed,
                        "seconds": round(outcome.seconds, 1),
                    }
                )
                results.write_text(json.dumps(rows, indent=1) + "\n")
                print(
                    f"{name:16} seed {seed} {label:10} test {outcome.scores['test']:.4f}  "
                    f"{outcome.seconds:.0f} s",
                    flush=True,
                )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean and standard deviation on *test* for each task."""
    lines = ["| task | what | test accuracy, mean ± sd | deployed |", "|---|---|---|---|"]
    for task in TASKS:
        for what in ("head-only", "hybrid"):
            found = [r for r in rows if r["task"] == task and r["what"] == what]
            scores = [r["test"] for r in found]
            sd = statistics.stdev(scores) if len(scores) > 1 else 0.0
            score, deployed = f"{statistics.mean(scores):.3f} ± {sd:.3f}", f"{found[0]['deployed']:,}"
            lines.append(f"| {task} | {what} | {score} | {deployed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results" / "results.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    options = parser.parse_args()
    if options.tables:
        print(table(json.loads(options.results.read_text())))
        return
    torch.set_num_threads(options.threads)
    print("\n" + table(measure(options.results, seeds=options.seeds)))


if __name__ == "__main__":
    main()
