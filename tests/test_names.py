"""Names are the field's: words that once stood for parts of the search name nothing any more."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("autopeft", "methods", "tests")
# A scheduler, a background thread, a driver's thread, a controller, a store of checkpoints, rungs, a pool of
# workers, the files of a model, messages between processes, a baseline, records and a copy are called so.
OLD = frozenset(
    {
        *("office", "courier", "relay", "director", "vault", "ladder", "crew", "cargo", "knock", "greet"),
        *("rival", "ledger", "twin"),
    }
)
# Tables and pages have cells; a search space has none.
OLD_IN_SEARCH = OLD | {"cell"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def words(name: str) -> set[str]:
    """The words of an identifier or a file's name in the singular: `two_cells` and `TwoCells` have `cell`."""
    return {word.lower().removesuffix("s") for word in _WORD.findall(name)}


def names_in(file: Path, old: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(where, name) of a file and of every identifier in it; texts and comments are no names. Of a file in
    which no `old` word is written at all only its own."""
    where = str(file.relative_to(ROOT))
    yield where, file.stem
    if file.suffix == ".py" and re.search("|".join(sorted(old)), file.read_text(encoding="utf-8"), re.I):
        with tokenize.open(file) as source:
            for token in tokenize.generate_tokens(source.readline):
                if token.type == tokenize.NAME:
                    yield f"{where}:{token.start[0]}", token.string


def test_no_metaphor_is_left_as_a_name() -> None:
    files = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if "__pycache__" not in path.parts and (path.is_dir() or path.suffix in (".py", ".yaml", ".json"))
    ]
    assert len(files) > 300
    found = []
    for file in files:
        old = OLD_IN_SEARCH if "search" in file.relative_to(ROOT).parts[:2] else OLD
        found += [f"{where}: {name}" for where, name in names_in(file, old) if words(name) & old]
    assert found == []


def test_words_of_names() -> None:
    assert words("_two_cells") == {"two", "cell"}
    assert words("HTMLCourier2") == {"html", "courier"}
    assert words("cancelled") & OLD == set()
    assert words("TwinTrial") & OLD == {"twin"}
