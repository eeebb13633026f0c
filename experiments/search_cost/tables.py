"""What the results of `run.py` come to: rows, totals, and the tables of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lib.measuring import ratios, show, summarise

__all__ = ["SIDES", "by_k", "compare", "outside", "show_tables", "summarise_all"]

SIDES = ("ours", "dynamic", "pad")


def compare(rows: Sequence[dict[str, Any]], side: str, start: float = 0.0) -> dict[str, Any] | None:
    """Total CPU seconds of a side against ours, over the recipes that both trained to the end.

    `start` is what our worker spends before its first trial; it is spent once, whatever the number of trials.
    """
    both = [r["sides"] for r in rows if side in r["sides"] and "ours" in r["sides"]]
    pairs = [(s["ours"], s[side]) for s in both if s["ours"]["error"] is None and s[side]["error"] is None]
    if not pairs:
        return None
    ours, theirs = [a["cpu"] for a, _ in pairs], [b["cpu"] for _, b in pairs]
    return {
        "recipes": len(pairs),
        "left_out": len(both) - len(pairs),
        "ours": sum(ours),
        "ours_with_start": sum(ours) + start,
        side: sum(theirs),
        "times": sum(theirs) / sum(ours),
        "times_with_start": sum(theirs) / (sum(ours) + start),
        "times_by_recipe": ratios(theirs, ours).to_dict(),
        "cpu_by_recipe": {"ours": summarise(ours).to_dict(), side: summarise(theirs).to_dict()},
    }


def by_k(rows: Sequence[dict[str, Any]], side: str) -> dict[int, dict[str, Any]]:
    """`compare` for the recipes of each k."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["k"]].append(row)
    found = {k: compare(group, side) for k, group in sorted(groups.items())}
    return {k: c for k, c in found.items() if c is not None}


def outside(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """CPU seconds of our trials outside training and scoring: attach, detach, bookkeeping."""
    ours = [r["sides"]["ours"] for r in rows if "ours" in r["sides"]]
    trials = [trial for trial in ours if trial["error"] is None]
    return {
        "seconds": summarise([t["outside"] for t in trials]).to_dict(),
        "share": summarise([t["outside"] / t["cpu"] for t in trials]).to_dict(),
    }


def _figure(row: dict[str, Any], side: str, name: str, digits: int) -> str:
    value = row["sides"].get(side, {}).get(name)
    return "" if value is None else f"{value:.{digits}f}"


def _times(row: dict[str, Any], side: str) -> str:
    sides = row["sides"]
    if side not in sides or "ours" not in sides or sides["ours"]["error"] is not None:
        return ""
    return f"{sides[side]['cpu'] / sides['ours']['cpu']:.2f}"


def show_tables(rows: list[dict[str, Any]], summary: dict[str, Any], pad: int) -> None:
    """Print recipes, the table by k, and the totals."""
    columns = ("methods", "k", "deployed", "ours, CPU s", "dynamic", "times", f"pad {pad}", "times")
    show(
        "Recipes (* said in peft, the others trained with our modules on both sides)",
        (*columns, "select: ours", "dynamic"),
        [
            (
                "+".join(r["methods"]) + ("*" if r["peft"] else ""),
                r["k"],
                f"{r['deployed']:,}",
                _figure(r, "ours", "cpu", 1),
                _figure(r, "dynamic", "cpu", 1),
                _times(r, "dynamic"),
                _figure(r, "pad", "cpu", 1),
                _times(r, "pad"),
                _figure(r, "ours", "score", 3),
                _figure(r, "dynamic", "score", 3),
            )
            for r in sorted(rows, key=lambda r: (r["k"], r["index"]))
        ],
    )
    for side in ("dynamic", "pad"):
        if side in summary:
            _show_side(side if side == "dynamic" else f"padded to {pad}", side, summary)
    spent = summary["outside"]
    seconds, share = spent["seconds"], spent["share"]
    show(
        "Ours outside training and scoring, a trial",
        ("", "median", "min", "max"),
        [
            ("CPU s", *(f"{seconds[x]:.3f}" for x in ("median", "low", "high"))),
            ("% of the trial", *(f"{100 * share[x]:.2f}" for x in ("median", "low", "high"))),
        ],
    )


def _show_side(title: str, side: str, summary: dict[str, Any]) -> None:
    total = summary[side]["total"]
    lines = [*((f"k = {k}", c) for k, c in summary[side]["by_k"].items()), ("all", total)]
    rows = []
    for name, c in lines:
        ours, theirs = (c["cpu_by_recipe"][x] for x in ("ours", side))
        spreads = (_spread(ours), _spread(theirs), _spread(c["times_by_recipe"]))
        rows.append((name, c["recipes"], *spreads, f"{c['ours']:.1f}", f"{c[side]:.1f}", f"{c['times']:.2f}"))
    sums = (f"{total['ours_with_start']:.1f}", f"{total[side]:.1f}", f"{total['times_with_start']:.2f}")
    rows.append(("all, our start too", total["recipes"], "", "", "", *sums))
    show(
        f"CPU seconds of a trial, median (min–max), and of all: ours against {title}",
        ("", "recipes", "ours", title, "times", "all: ours", f"all: {title}", "times"),
        rows,
    )


def _spread(summary: dict[str, float]) -> str:
    return f"{summary['median']:.1f} ({summary['low']:.1f}–{summary['high']:.1f})"


def summarise_all(rows: Sequence[dict[str, Any]], starts: Sequence[float]) -> dict[str, Any]:
    """Totals and tables by k against each side that was run; `starts` are CPU seconds of our worker's starts.

    A run that was interrupted has started more than one worker; one start, the median, is counted.
    """
    start = statistics.median(starts)
    found: dict[str, Any] = {"start_cpu_seconds": start, "outside": outside(rows)}
    for side in ("dynamic", "pad"):
        total = compare(rows, side, start)
        if total is not None:
            found[side] = {"total": total, "by_k": by_k(rows, side)}
    return found
