"""Rows of words with tags that a tiny backbone can learn, in each layout of files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from support.saved_model import BAD, GOOD, NEUTRAL

NAMES = ("O", "B-good", "I-good", "B-bad", "I-bad")


def tagged_rows(rows: int = 120) -> list[tuple[list[str], list[str]]]:
    """Words and their tags: good and bad words are entities, and one goes on where two of a sort meet."""
    draw = Random(0)
    found = []
    for i in range(rows):
        drawn = draw.choices([*NEUTRAL, *NEUTRAL, *GOOD, *BAD], k=draw.randint(4, 9))
        words = [*drawn, *["the"] * (i % 3), "film"]
        tags: list[str] = []
        for word in words:
            sort = "good" if word in GOOD else "bad" if word in BAD else None
            begun = bool(tags) and tags[-1][2:] == sort
            tags.append("O" if sort is None else f"{'I' if begun else 'B'}-{sort}")
        found.append((words, tags))
    return found


def write_tagged(path: Path, rows: int = 120) -> Path:
    """Write them as JSON lines, CSV or in CoNLL's layout, by the suffix."""
    found = tagged_rows(rows)
    if path.suffix == ".jsonl":
        lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in found]
    elif path.suffix == ".csv":
        lines = ["tokens,tags", *(f"{' '.join(words)},{' '.join(tags)}" for words, tags in found)]
    else:
        lines = ["-DOCSTART- O", ""]
        for words, tags in found:
            lines += [*(f"{word} {tag}" for word, tag in zip(words, tags, strict=True)), ""]
    path.write_text("\n".join(lines) + "\n")
    return path
