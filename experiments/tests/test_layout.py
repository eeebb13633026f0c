"""Every folder answers one question, and every command in the prose names a script that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
OTHERS = {"lib", "notebooks", "tests"}
FOLDERS = sorted(
    p.name for p in EXPERIMENTS.iterdir() if (p / "README.md").exists() or (p / "run.py").exists()
)
PROSE = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "docs").rglob("*.md"),
    *EXPERIMENTS.rglob("*.md"),
    *(p for p in EXPERIMENTS.rglob("*.py") if "tests" not in p.parts),
]


@pytest.mark.parametrize("name", [n for n in FOLDERS if n not in OTHERS])
def test_a_folder_has_its_question_its_run_and_its_results(name: str) -> None:
    folder = EXPERIMENTS / name
    title, _, rest = (folder / "README.md").read_text(encoding="utf-8").partition("\n")
    assert title.startswith("# ")
    assert title.endswith("?")
    assert f"python experiments/{name}/run.py" in rest
    assert (folder / "run.py").exists()
    assert any((folder / "results").iterdir())
    assert f"`{name}`" in (EXPERIMENTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_prose_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"\bexperiments/[\w/]+(?:\.\w+)?", text))
    assert [n for n in sorted(named) if not (ROOT / n).exists()] == []
    relative = set(re.findall(r"`(\.\./[\w./]+)`", text))
    assert [n for n in sorted(relative) if not (path.parent / n).exists()] == []
