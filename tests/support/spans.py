"""Questions on texts that a tiny backbone can learn, in each layout of files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from support.saved_model import BAD, GOOD, NEUTRAL


def question_rows(rows: int = 120, *, empty: int = 0) -> list[dict[str, Any]]:
    """Which word is good: one good word among neutral ones. Every `empty`-th text has a bad one instead, and
    no answer."""
    draw = Random(0)
    found = []
    for i in range(rows):
        words = draw.choices(NEUTRAL, k=draw.randint(4, 14))
        at, none = draw.randrange(len(words)), bool(empty) and i % empty == 0
        words[at] = draw.choice(BAD if none else GOOD)
        start = len(" ".join(words[:at])) + (at > 0)
        answers = {"text": [], "answer_start": []} if none else {"text": [words[at]], "answer_start": [start]}
        found.append({"question": "was the film good", "context": " ".join(words), "answers": answers})
    return found


def nested(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows in SQuAD's original layout, two questions to an article."""
    articles = []
    for i in range(0, len(rows), 2):
        paragraphs = [
            {"context": row["context"], "qas": [{"id": str(i), "question": row["question"], "answers": [
                {"text": text, "answer_start": start}
                for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            ]}]}
            for row in rows[i : i + 2]
        ]  # fmt: skip
        articles.append({"title": f"article {i}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def write_questions(path: Path, rows: int = 120, *, empty: int = 0) -> Path:
    """Write them as JSON lines, Parquet or SQuAD's own JSON, by the suffix."""
    found = question_rows(rows, empty=empty)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(found), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(nested(found)))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path
