"""What is in the bank, as tables."""

from __future__ import annotations

from collections.abc import Iterable

from autopeft.bank import BankEntry, Damaged
from autopeft.report.sheet import Sheet
from autopeft.report.text import number, score
from autopeft.starts.ranking import Ranking

__all__ = ["bank_sheet", "kept_sheet", "ranking_sheet"]

_EMPTY = "The bank is empty; `autopeft bank add RUN` keeps the winner of a run."


def bank_sheet(found: Iterable[BankEntry | Damaged]) -> Sheet:
    """A line for each hybrid."""
    rows, damaged = [], []
    for kept in found:
        if isinstance(kept, Damaged):
            damaged.append(kept.problem)
            continue
        rows.append(
            (
                kept.name,
                kept.task or "–",
                kept.model or kept.family or "–",
                ", ".join(entry.method for entry in kept.entries) or "head alone",
                number(kept.deployed),
                kept.metric or "–",
                score(kept.select),
                str(kept.seed if kept.seed is not None else "–"),
            )
        )
    return Sheet(
        ("name", "task", "backbone", "methods", "deployed", "metric", "select", "seed"),
        tuple(rows),
        notes=tuple(damaged if rows or damaged else [_EMPTY]),
        right=frozenset({"deployed"}),
        fold=frozenset({"methods", "backbone"}),
        drop=("seed", "metric", "backbone"),
    )


def kept_sheet(kept: BankEntry) -> Sheet:
    """All that is known of one."""
    told = kept.model_dump(exclude={"entries", "name"})
    rows = [(name, "–" if value is None else str(value)) for name, value in told.items()]
    for entry in kept.entries:
        options = ", ".join(f"{key}={value}" for key, value in entry.options.items()) or "defaults"
        places = sorted({key.rpartition(f".{entry.name}.")[0] or "model" for key in entry.shapes})
        where = ", ".join(places[:6]) + (f" and {len(places) - 6} more" if len(places) > 6 else "")
        rows.append((f"entry {entry.name}", f"{entry.method} ({options}) at {where}"))
    return Sheet(
        (kept.name, ""),
        tuple(rows),
        notes=(f"In a recipe: inputs: [bank:{kept.name}], and an entry with 'from: {kept.name}'.",),
        fold=frozenset({""}),
    )


def ranking_sheet(found: Ranking) -> Sheet:
    """A line for each start, the best first."""
    rows = tuple(
        (start.name, start.task or "–", ", ".join(start.methods), f"{start.score:.4f}", f"{gain:+.4f}")
        for start in found.starts
        for gain in (start.score - found.bare,)
    )
    told = f"The score is the log evidence of the labels of {found.rows} rows for each row; higher is better."
    return Sheet(
        ("name", "task", "methods", "score", "against the bare backbone"),
        rows,
        title=f"Starts for {found.task} on {found.model}",
        notes=(told, f"The bare backbone has {found.bare:.4f}. Nothing was trained.", *found.skipped),
        right=frozenset({"score", "against the bare backbone"}),
        fold=frozenset({"methods"}),
        drop=("methods", "task"),
    )
