"""The page of model families names each that has a map, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from autopeft.backbones import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "families.md"


def test_the_table_names_the_families_that_have_a_map() -> None:
    table = PAGE.read_text().split("| kind |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row) if name != "model_type"]
    assert sorted(named) == sorted(FAMILIES)
