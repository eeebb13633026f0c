"""Run folders as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from autopeft.errors import UsageError
from autopeft.foreign import table_of
from autopeft.report.sheet import Sheet
from autopeft.report.text import duration, number, percent, score
from autopeft.runs.folder import no_runs
from autopeft.runs.records import FrontPoint, Sample, TrialRecord

__all__ = ["front_sheet", "inputs_of", "runs_sheet", "samples_sheet", "trials_sheet", "verdict_of"]

_LETTERS = 160  # of a text in a table of the terminal


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _word(value: Any) -> str:
    return "–" if value is None else str(value)


def runs_sheet(rows: Iterable[Mapping[str, Any]], root: str) -> Sheet:
    """Summaries of runs (`RunFolder.summary`)."""
    table, damaged = [], []
    for row in rows:
        if row.get("problem"):
            damaged.append(f"{_word(row.get('run'))} is damaged: {row['problem']}")
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
    notes = damaged if table else [no_runs(root)]
    return Sheet(
        ("run", "state", "task", "model", "budget", "share", "metric", "test"),
        tuple(table),
        notes=tuple(notes),
        fold=frozenset({"task", "model"}),
        drop=("model", "share", "budget", "task", "metric", "state"),
    )


def trials_sheet(records: Iterable[TrialRecord]) -> Sheet:
    """Every training run of a search: trials, finalists, baselines."""
    rows = tuple(
        (
            r.label,
            r.state,
            number(r.deployed),
            percent(r.share),
            score(r.score),
            score(r.scores.get("test")),
            duration(r.seconds),
            _word(r.error) if r.state == "failed" else "",
        )
        for r in records
    )
    headers = ("run", "state", "deployed", "share", "select", "test", "time", "error")
    return Sheet(
        headers,
        rows,
        title="Training runs",
        right=frozenset(headers[2:7]),
        fold=frozenset({"run", "error"}),
        drop=("time", "share", "test"),
    )


def front_sheet(front: Iterable[FrontPoint]) -> Sheet:
    """Size against score: recipes that no other beats in both."""
    rows = tuple((str(p.number), number(p.deployed), percent(p.share), score(p.score), p.name) for p in front)
    headers = ("trial", "deployed", "share", "select", "recipe")
    return Sheet(
        headers,
        rows,
        title="Front (size against score on select)",
        right=frozenset(headers[:4]),
        drop=("share",),
    )


def inputs_of(recipe: Any) -> list[str]:
    """What a run's winner starts from, a line for each input; none where its recipe, as data, is none."""
    if not table_of(recipe).get("inputs"):
        return []
    from autopeft.recipe import Recipe  # which imports torch
    from autopeft.recipe.told import input_lines

    try:
        return input_lines(Recipe.from_dict(recipe))
    except UsageError:  # `autopeft show` says what is wrong with it
        return []


def verdict_of(sample: Sample, metric: str) -> str:
    """Whether an answer is the expected one, and what the metric gives it."""
    said = "right" if sample.right else "another answer"
    return said if sample.value is None else f"{said}, {metric} {sample.value:.4g}"


def samples_sheet(samples: Iterable[Sample], metric: str) -> Sheet:
    """A handful of the answers that the winner wrote, each text on one line."""
    rows = tuple(
        (
            f"{s.split} {s.row + 1}",
            *(_line(text) for text in (s.prompt, s.expected, s.written)),
            verdict_of(s, metric),
        )
        for s in samples
    )
    headers = ("row", "prompt", "expected", "written", "verdict")
    return Sheet(
        headers,
        rows,
        title="Samples of answers",
        fold=frozenset(headers[1:4]),
        drop=("verdict",),
    )


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LETTERS else f"{words[: _LETTERS - 2]} …"
