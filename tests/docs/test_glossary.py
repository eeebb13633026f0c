"""docs/glossary.md gives each word one meaning, and says where in the code the thing is."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

import pytest
from support.documents import code_in, marks, table

PAGE = "docs/glossary.md"
ROWS = [row for name in marks(PAGE, "glossary") for row in table(PAGE, f"glossary: {name}")]
ASKED = (
    *("backbone", "site", "method", "module", "composition", "entry", "recipe", "hybrid", "budget", "space"),
    *("candidate", "trial", "rung", "study", "strategy", "sampler", "kind of task", "metric", "baseline"),
    *("finalist", "artefact", "multi"),
)


def test_each_word_has_one_meaning() -> None:
    words = [row["word"].strip("*") for row in ROWS]
    assert len(words) == len(set(words))
    assert set(ASKED) <= set(words)
    assert all(row["meaning"].endswith((".", "…")) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["word"])
def test_it_is_where_the_glossary_says(row: dict[str, str]) -> None:
    (path,) = code_in(row["in the code"])
    assert found_at(path) is not None


def found_at(path: str) -> Any:
    """What a dotted path names: a module, or something in one."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[end:], module)
    raise AssertionError(f"{path} is gone")


def test_what_is_gone_is_found_out() -> None:
    with pytest.raises(AttributeError):
        found_at("autopeft.recipe.Repice")
