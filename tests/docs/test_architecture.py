"""ARCHITECTURE.md says what the code does: the ladder, the packages, the example and the plug-ins."""

from __future__ import annotations

import configparser
import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from support.documents import ROOT, block, code_in, table, text_of
from support.training import encoded_task, tiny_bert

from autopeft.composition import registry as compositions
from autopeft.method import registry as methods
from autopeft.plugins import Registry
from autopeft.runs.folder import RunFolder
from autopeft.search.optimization.samplers import SAMPLERS
from autopeft.search.selection.stages import STAGES
from autopeft.search.strategies.registry import STRATEGIES
from autopeft.tasks.kinds import registry as kinds

PAGE = "ARCHITECTURE.md"


@pytest.mark.parametrize("contract", ["rooms", "search"])
def test_the_layers_are_the_contracts(contract: str) -> None:
    linter = configparser.ConfigParser()
    linter.read(ROOT / ".importlinter")
    layers = linter[f"importlinter:contract:{contract}"]["layers"].split("\n")
    assert block(PAGE, f"ladder: {contract}").splitlines() == [line for line in layers if line]


def test_every_package_is_described_and_none_that_is_gone() -> None:
    """Modules at the top are rooms as well; those of single methods have pages of their own."""
    named = [code_in(row["package"])[0] for row in table(PAGE, "packages")]
    own = {p.parent.relative_to(ROOT) for p in (ROOT / "autopeft").rglob("__init__.py")}
    at_top = {m.name for m in pkgutil.iter_modules([str(ROOT / "autopeft")]) if not m.ispkg} - {"__main__"}
    there = {".".join(p.parts) for p in own} | {f"autopeft.{name}" for name in at_top}
    assert sorted(named) == sorted(there | {"autopeft.methods", "autopeft.search_spaces"})


def test_the_example_runs_as_it_is_shown(tmp_path: Path) -> None:
    code = "".join(re.findall(r"^```pycon\n(.*?)^```$", text_of(PAGE), re.M | re.S))
    given: dict[str, Any] = {
        "model": tiny_bert(),
        "data": encoded_task(),
        "folder": RunFolder.create("toy", "abcdef", out=tmp_path / "run"),
    }
    example = doctest.DocTestParser().get_doctest(code, given, PAGE, PAGE, 0)
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted > 15


REGISTRIES: dict[str, Registry[Any]] = {
    "method": methods.REGISTRY,
    "composition": compositions.REGISTRY,
    "sampler": SAMPLERS,
    "strategy": STRATEGIES,
    "stage": STAGES,
    "kind of task": kinds.KINDS,
}


def object_at(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_plug_ins_are_where_the_table_says() -> None:
    rows = {row["what"]: {k: code_in(v) for k, v in row.items()} for row in table(PAGE, "plug-ins")}
    assert set(rows) == {*REGISTRIES, "metric"}
    for what, row in rows.items():
        (contract,), (register,), (folder,), (group,) = list(row.values())[1:]
        assert object_at(contract).__doc__
        assert callable(object_at(register))
        assert (ROOT / folder).is_dir()
        registry = REGISTRIES.get(what, kinds.KINDS)
        assert group == registry.group
        # Metrics are tables of numbers' functions and kinds are instances: both have a class in the folder.
        things = kinds.METRICS.values() if what == "metric" else registry.values()
        owners = {owner(thing).partition(".")[2].replace(".", "/") for thing in things}
        assert all(folder.removeprefix("autopeft/").rstrip("/") in path for path in owners), (what, owners)


def owner(thing: Any) -> str:
    """The module that a registered thing is defined in."""
    thing = getattr(thing, "score", thing) if not isinstance(thing, type) else thing
    return str(getattr(thing, "__module__", type(thing).__module__))


def test_files_and_documents_that_it_names_exist() -> None:
    text = text_of(PAGE)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text):
        inside = (ROOT / path, ROOT / "autopeft" / path, ROOT / "autopeft" / "search" / path)
        assert any(p.is_file() for p in inside), path
