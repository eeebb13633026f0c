"""Texts with several labels that a tiny backbone can learn."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from support.saved_model import BAD, GOOD, NEUTRAL


def labelled_rows(rows: int = 160) -> list[tuple[str, list[str]]]:
    """Texts, and whether they praise, blame and tell of a film: one word says each."""
    draw, found = Random(0), []
    for i in range(rows):
        labels = [name for k, name in enumerate(("blame", "film", "praise")) if i >> k & 1]
        words = draw.choices(NEUTRAL[1:], k=draw.randint(2, 5))
        words += [draw.choice(BAD)] * ("blame" in labels) + ["film"] * ("film" in labels)
        words += [draw.choice(GOOD)] * ("praise" in labels)
        draw.shuffle(words)
        found.append((" ".join([*words, *["was"] * (i % 9)]), labels))
    return found


def write_labelled(path: Path, rows: int = 160) -> Path:
    """Write them as JSON lines with lists, or as CSV with a column for each label."""
    found = labelled_rows(rows)
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "labels": labels}) for text, labels in found]
    else:
        names = ("praise", "blame", "film")
        marks = [f"{text},{','.join(str(int(n in labels)) for n in names)}" for text, labels in found]
        lines = [f"text,{','.join(names)}", *marks]
    path.write_text("\n".join(lines) + "\n")
    return path
