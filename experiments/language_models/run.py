"""Do searches pay on a language model? Two tasks, three budgets, one search each on SmolLM2-135M.

    python experiments/language_models/run.py            # goes on where it stopped; some 3 hours of two cores
    python experiments/language_models/run.py --dry-run  # what is left
    python experiments/language_models/run.py --tables

Each is the search that `autopeft search --serve peft` is by itself on such a backbone and a CPU, with a seed
of its own: eight recipes, two finalists with three fresh seeds, in 29 minutes, in which a slow machine leaves
some out. Beside the winner stand tuned LoRA of the same budget, the untuned model, and that with four
examples before each prompt. *Test* is scored once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note
from lib.searches import finished_search
from lib.storage import append_row, read_rows

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results" / "searches.jsonl", HERE / "runs"
MODEL, TASKS, BUDGETS = "smollm2-135m", ("gym:chain_sum", "cmudict"), ("0.05%", "0.3%", "1%")
SETTING: dict[str, Any] = {"model": MODEL, "serve": "peft"}
KINDS = {"LoRA": "tuned LoRA", "untuned": "untuned", "few-shot": "four examples before the prompt"}
MINUTES = 29
_KEPT = ("metric", "recipe", "counts", "select", "test", "comparisons", "finding", "baselines", "trials")
_KEPT += ("seconds", "remarks", "trial_metric")


def missing(rows: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """Task, budget and seed of the searches that are not recorded."""
    known = {(row["task"], row["budget"]) for row in rows}
    cells = [(task, budget) for budget in BUDGETS[1:] + BUDGETS[:1] for task in TASKS]
    return [(task, budget, i) for i, (task, budget) in enumerate(cells) if (task, budget) not in known]


def searched(task: str, budget: str, seed: int) -> dict[str, Any]:
    """The outcome of a search, run or taken up where that is needed."""
    out = RUNS / f"{task.replace(':', '-')}-{budget.rstrip('%')}"
    found = finished_search(out, task=task, budget=budget, seed=seed, **SETTING)
    return {"task": task, "budget": budget, "seed": seed, **{key: found[key] for key in _KEPT}}


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: each winner, and what it is compared with on *test*."""
    headers = ["task", "budget", "trials", "winner", "parameters", "test", "tuned LoRA"]
    headers += [f"less {what}" for what in KINDS.values()] + ["minutes"]
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    for row in rows:
        lora = next((b for b in row["baselines"] if b["name"].startswith("LoRA")), None)
        cells = [
            row["task"],
            row["budget"],
            str(row["trials"]["complete"]),
            row["recipe"]["name"],
            f"{row['counts']['deployed']:,}",
            _scores(row["test"]),
            _scores(lora["test"]) if lora else "",
            *(_difference(row["comparisons"], kind) for kind in KINDS),
            f"{row['seconds'] / 60:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def _difference(comparisons: list[Mapping[str, Any]], kind: str) -> str:
    """In points, with the interval of 95 %."""
    found = next((c for c in comparisons if c["baseline"].startswith(kind)), None)
    if found is None:
        return ""
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="what is left, and what it will take")
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    given = parser.parse_args()
    left = missing(read_rows(RESULTS))
    note(f"{len(left)} searches are left, some {len(left) * MINUTES / 60:.1f} hours of two cores")
    if not (given.dry_run or given.tables):
        for task, budget, seed in left:
            row = searched(task, budget, seed)
            append_row(RESULTS, row)
            note(f"{task} {budget}: {row['finding']}")
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()
