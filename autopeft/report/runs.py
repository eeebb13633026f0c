"""Run folders as tables. Their content is data of a file: nothing in it is taken for granted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autopeft.report.sheet import Sheet
from autopeft.report.text import duration, number, percent, score

__all__ = ["front_sheet", "runs_sheet", "trials_sheet"]


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _word(value: Any) -> str:
    return "–" if value is None else str(value)


def runs_sheet(rows: Iterable[Mapping[str, Any]], root: str) -> Sheet:
    """Summaries of runs (`RunFolder.summary`)."""
    table = []
    for row in rows:
        test, sd = _real(row.get("test_mean")), _real(row.get("test_sd"))
        spread = "" if sd is None else f" ± {sd:.4f}"
        table.append(
            (
                _word(row.get("run")),
                _word(row.get("state")),
                _word(row.get("task")),
                _word(row.get("model")),
                _word(row.get("budget")),
                percent(_real(row.get("share"))),
                _word(row.get("metric")),
                score(test) + spread,
            )
        )
    notes = () if table else (f"No runs under {root} yet; `autopeft search` makes one.",)
    return Sheet(
        ("run", "state", "task", "model", "budget", "share", "metric", "test"), tuple(table), notes=notes
    )


def trials_sheet(records: Iterable[Mapping[str, Any]]) -> Sheet:
    """Every training run of a search: trials, finalists, baselines."""
    rows = []
    for r in records:
        counts = r.get("counts") if isinstance(r.get("counts"), Mapping) else {}
        assert isinstance(counts, Mapping)
        scores = r.get("scores") if isinstance(r.get("scores"), Mapping) else {}
        assert isinstance(scores, Mapping)
        failed = r.get("state") == "failed"
        rows.append(
            (
                _word(r.get("label")),
                _word(r.get("state")),
                number(_real(counts.get("deployed"))),
                percent(_real(counts.get("share"))),
                score(_real(r.get("score"))),
                score(_real(scores.get("test"))),
                duration(_real(r.get("seconds"))),
                _word(r.get("error")) if failed else "",
            )
        )
    headers = ("run", "state", "deployed", "share", "select", "test", "time", "error")
    return Sheet(headers, tuple(rows), title="Training runs", right=frozenset(headers[2:7]))


def front_sheet(front: Iterable[Mapping[str, Any]]) -> Sheet:
    """Size against score: recipes that no other beats in both."""
    rows = tuple(
        (
            _word(p.get("number")),
            number(_real(p.get("deployed"))),
            percent(_real(p.get("share"))),
            score(_real(p.get("score"))),
            _word(p.get("name")),
        )
        for p in front
    )
    headers = ("trial", "deployed", "share", "select", "recipe")
    return Sheet(headers, rows, title="Front (size against score on select)", right=frozenset(headers[:4]))
