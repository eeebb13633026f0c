"""Tables of the winners' outcomes, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from lib.intervals import interval

__all__ = ["TASKS", "tables"]

TASKS = ("movie-sentences", "trec")


def tables(results: dict[str, Any]) -> str:
    """Markdown: every winner, the winners against each baseline, and what is left on the other task."""
    lines = ["| task | seed | winner | parameters | test | select − test |", "|---|---|---|---|---|---|"]
    for key, r in results.items():
        task, _, seed = key.partition("/")
        test = f"{statistics.fmean(r['test']):.3f} ± {statistics.stdev(r['test']):.3f}"
        size, bias = r["counts"]["deployed"], r["selection_bias"]
        lines.append(f"| {task} | {seed} | {_methods(r['recipe'])} | {size:,} | {test} | {bias:+.3f} |")
    lines += [
        "",
        "| task | against | difference on test, mean of the searches | better, worse, within noise |",
    ]
    lines.append("|---|---|---|---|")
    for task in TASKS:
        found = [r for key, r in results.items() if key.startswith(f"{task}/")]
        for name in dict.fromkeys(_kind(c["baseline"]) for r in found for c in r["comparisons"]):
            each = [c for r in found for c in r["comparisons"] if _kind(c["baseline"]) == name]
            lines.append(
                f"| {task} | {name} | {_mean([c['difference'] for c in each])} | {_verdicts(each)} |"
            )
    lines += ["", "| searched on | trained on | test | less LoRA there | less the winner there |"]
    lines.append("|---|---|---|---|---|")
    for task, other in (TASKS, TASKS[::-1]):
        seeds = [s for s in range(len(results)) if "transfer" in results.get(f"{task}/{s}", {})]
        moved = [statistics.fmean(results[f"{task}/{s}"]["transfer"]) for s in seeds]
        there = [results[f"{other}/{s}"] for s in seeds]
        lora = [next(b["test_mean"] for b in r["baselines"] if b["name"].startswith("LoRA")) for r in there]
        own = [statistics.fmean(r["test"]) for r in there]
        score = _mean(moved).removeprefix("+")
        less = [_mean([a - b for a, b in zip(moved, baseline, strict=True)]) for baseline in (lora, own)]
        lines.append(f"| {task} | {other} | {score} | {less[0]} | {less[1]} |")
    return "\n".join(lines)


def _methods(recipe: dict[str, Any]) -> str:
    items = [i for block in recipe.get("layers", []) for i in block["attach"]] + recipe.get("model", [])
    return " + ".join(dict.fromkeys(i if isinstance(i, str) else next(iter(i)) for i in items))


def _kind(baseline: str) -> str:
    """What a baseline is, without what a search's *select* chose of its kind."""
    return "LoRA" if baseline.startswith("LoRA") else baseline.partition(":")[0]


def _verdicts(each: Sequence[dict[str, Any]]) -> str:
    better, worse = sum(c["low"] > 0 for c in each), sum(c["high"] < 0 for c in each)
    return f"{better}, {worse}, {len(each) - better - worse}"


def _mean(values: Sequence[float]) -> str:
    """Mean ± half of its 95 % interval over the searches (Student's t)."""
    if len(values) < 2:
        return f"{values[0]:+.3f}" if values else ""
    mean, half = interval(values)
    return f"{mean:+.3f} ± {half:.3f}"
