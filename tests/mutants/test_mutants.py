"""Mutants: defects put into the code on purpose, each of which the tests of its file must see.

Each YAML file beside this one is the table of a family: file → its mutants. A mutant says `what` it is, which
`old` text of the file, found there once, `new` stands for, and which `tests` must fail, where these are not
the file's own (`methods/a/b.py` has `tests/methods/a/test_b.py`, fixed recipes have `test_fixed_recipes.py`).

`pytest tests/mutants -m mutants` tries all, and its summary names the survivors. `-k prompts` tries those of
one table, `-k prompts/apt` those of one file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
HANGS = 600  # seconds after which a mutant's tests count as failed


@dataclass(frozen=True)
class Mutant:
    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]


def _table(path: Path) -> list[Mutant]:
    def own(file: str) -> str:
        place = Path(file.removeprefix("autopeft/"))
        return f"tests/{place.parent}/test_{'fixed_recipes' if place.suffix == '.yaml' else place.stem}.py"

    rows = YAML(typ="safe").load(path)
    return [
        Mutant(file, row["what"], row["old"], row["new"], tuple(row.get("tests", [own(file)])))
        for file, own_rows in rows.items()
        for row in own_rows
    ]


MUTANTS = [
    pytest.param(mutant, id=f"{path.stem}/{Path(mutant.file).stem}: {mutant.what}")
    for path in sorted(Path(__file__).parent.glob("*.yaml"))
    for mutant in _table(path)
]


def _mutated(mutant: Mutant, root: Path) -> str:
    text = (root / mutant.file).read_text(encoding="utf-8")
    found = text.count(mutant.old)
    assert found == 1, f"{mutant.file} has {found} times {mutant.old!r}: bring the row up to date"
    return text.replace(mutant.old, mutant.new)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_row_fits_the_code(mutant: Mutant) -> None:
    changed = _mutated(mutant, ROOT)
    assert mutant.new != mutant.old
    if mutant.file.endswith(".py"):
        compile(changed, mutant.file, "exec")
    assert mutant.tests
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests)


class Checkout:
    """A copy of the working tree, which its tests import all of.

    An editable install names the folders that it was made in, so that `autopeft.methods` would be theirs,
    whatever PYTHONPATH says. A link in the copy comes before that.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.passes = cache(self._passes)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")[:-1]:
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        for name in ("methods", "search_spaces"):
            (root / "autopeft" / name).symlink_to(root / name)
        # The tests on the second device need it declared by `import torch`.
        device = root / "tests" / "support" / "second_device"
        self.environment = {**os.environ, "PYTHONPATH": str(root)}
        self.on_device = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(device)])}
        where = "import autopeft, autopeft.methods as m; print(*autopeft.__path__, *m.__path__, sep='\\n')"
        command = [sys.executable, "-c", where]
        found = subprocess.check_output(command, cwd=root.parent, env=self.environment, text=True)
        assert [Path(path).resolve() for path in found.splitlines()] == [root / "autopeft", root / "methods"]

    def fails(self, tests: tuple[str, ...]) -> str:
        """What a run of these tests says that fails; empty where all pass."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
        there = all(test.startswith("tests/second_device/") for test in tests)
        if there:
            command += ["-m", ""]
        environment = self.on_device if there else self.environment
        try:
            done = subprocess.run(
                command, cwd=self.root, env=environment, text=True, capture_output=True, timeout=HANGS
            )
        except subprocess.TimeoutExpired:
            return "They hang."
        assert done.returncode in (0, 1), f"The tests did not run:\n{done.stdout}{done.stderr}"
        return done.stdout if done.returncode else ""

    def _passes(self, test: str) -> None:
        said = self.fails((test,))
        assert not said, f"{test} fails without any mutant:\n{said}"

    def attempt(self, mutant: Mutant) -> bool:
        """Whether the tests see the mutant."""
        for test in mutant.tests:
            self.passes(test)
        path = self.root / mutant.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(_mutated(mutant, self.root), encoding="utf-8")
        try:
            return bool(self.fails(mutant.tests))
        finally:
            path.write_text(whole, encoding="utf-8")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("checkout"))


@pytest.mark.mutants
@pytest.mark.timeout(0)  # each run of tests has its own
@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_is_seen(mutant: Mutant, checkout: Checkout) -> None:
    assert checkout.attempt(mutant), f"{mutant.what}: {', '.join(mutant.tests)} pass"
