"""What single pages say of the code is so: words, efforts, families, and the bounds of SECURITY.md."""

from __future__ import annotations

import importlib
import re
from functools import reduce

import pytest
from fuzz.harness import MEGABYTES, SECONDS
from fuzz.surface import surfaces
from support.documents import ROOT, code_in, marks, table, text_of

from autopeft.backbones import FAMILIES
from autopeft.effort import EFFORTS, QUICK_OF_LARGE
from autopeft.recipe.size import MAX_NESTING, MOST_COPIES, MOST_VALUES

GLOSSARY = "docs/glossary.md"
WORDS = [row for name in marks(GLOSSARY, "glossary") for row in table(GLOSSARY, f"glossary: {name}")]


def test_each_word_of_the_glossary_has_one_meaning() -> None:
    words = [row["word"].strip("*") for row in WORDS]
    assert len(words) == len(set(words)) > 20


@pytest.mark.parametrize("row", WORDS, ids=lambda row: row["word"])
def test_it_is_where_the_glossary_says(row: dict[str, str]) -> None:
    (path,) = code_in(row["in the code"])
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        assert reduce(getattr, parts[end:], module) is not None
        return
    raise AssertionError(f"{path} is gone")


def test_the_table_of_efforts_is_that_of_the_package() -> None:
    fields = ("trials", "steps", "batch_size", "train_rows", "select_rows", "test_rows", "top", "seeds")
    lines = [line.strip("|").split("|") for line in text_of("docs/how-to/effort.md").splitlines()]
    rows = [[cell.strip() for cell in line] for line in lines if len(line) == 1 + len(fields)][2:]
    known = [EFFORTS["quick"], QUICK_OF_LARGE["encoder"], QUICK_OF_LARGE["decoder"]]
    known += [effort for name, effort in EFFORTS.items() if name != "quick"]
    assert [row[0].split("`")[1] for row in rows] == [effort.name for effort in known]
    assert [row[1:] for row in rows] == [
        ["all" if (value := getattr(effort, field)) is None else f"{value:,}" for field in fields]
        for effort in known
    ]


def test_the_table_of_families_names_those_that_have_a_map() -> None:
    page = text_of("docs/concepts/families.md").split("| kind |")[1].split("\n\n")[0]
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`" in line]
    named = [name for row in rows for name in code_in(row) if name != "model_type"]
    assert sorted(named) == sorted(FAMILIES)


def test_security_has_the_bounds_of_the_code_and_every_surface() -> None:
    text = " ".join(text_of("SECURITY.md").split())
    for bound in (f"{MOST_VALUES:,} values", f"{MAX_NESTING} levels", f"{MOST_COPIES} copies"):
        assert bound in text
    assert set(re.findall(r"(\d+) seconds (?:and|or) (\d+) MB", text)) == {(f"{SECONDS:.0f}", str(MEGABYTES))}
    named = re.findall(r"`(tests/[\w/.]+)`", text)
    assert len(named) >= 3
    assert all((ROOT / name).exists() for name in named)
    other_words = {"options": "names", "card": "cards"}
    for name in surfaces():
        assert other_words.get(name, name).replace("_", " ") in text.replace("_", " "), name
