"""What SECURITY.md promises has the bounds that the code has."""

from __future__ import annotations

import re

from fuzz.harness import MEGABYTES, SECONDS
from fuzz.surface import surfaces
from support.documents import ROOT, text_of

from autopeft.recipe.size import MAX_NESTING, MOST_COPIES, MOST_VALUES

TEXT = " ".join(text_of("SECURITY.md").split())


def test_bounds_are_those_of_the_code() -> None:
    assert f"at most {MOST_VALUES:,} values, {MAX_NESTING} levels, {MOST_COPIES} copies" in TEXT
    assert f"up to {SECONDS:.0f} seconds and {MEGABYTES} MB" in TEXT
    assert f"more than {SECONDS:.0f} seconds or {MEGABYTES} MB" in TEXT


def test_tests_that_it_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", TEXT)
    assert len(named) >= 3
    assert all((ROOT / name).exists() for name in named)


def test_every_surface_is_in_the_table() -> None:
    said = TEXT.replace("_", " ")
    words = {"options": "names", "card": "cards"}
    for name in surfaces():
        assert words.get(name, name.replace("_", " ")) in said, name
