"""What all registries have in common: names, near matches, and packages that cannot be imported."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from support.registries import keep

from autopeft import plugins
from autopeft.composition.registry import REGISTRY as COMPOSITIONS
from autopeft.errors import DataError, PluginError, UsageError
from autopeft.method.registry import REGISTRY as METHODS
from autopeft.plugins import Registry
from autopeft.search.optimization.samplers import SAMPLERS
from autopeft.search.strategies.registry import STRATEGIES
from autopeft.tasks.kinds.registry import KINDS, METRICS

OPEN = {
    "autopeft.methods": METHODS,
    "autopeft.compositions": COMPOSITIONS,
    "autopeft.samplers": SAMPLERS,
    "autopeft.strategies": STRATEGIES,
    "autopeft.task_kinds": KINDS,
}


def hats(**more: Any) -> Registry[Any]:
    return Registry(
        error=DataError,
        malformed="No hat is called {name!r}.",
        taken="{name!r} is the hat of {by}.",
        unknown="There is no hat {name!r}.{near} There are {count}: {names} ({in_order}).",
        **more,
    )


def entered(*names: str, **more: Any) -> Registry[Any]:
    registry = hats(**more)
    for name in names:
        registry.enter(name, type(name, (), {}))
    return registry


def test_threads_wait_for_the_one_that_imports() -> None:
    """A server's first two requests may come together."""
    begun, seen = threading.Event(), list[str]()

    def import_slowly() -> None:
        begun.set()
        seen.append(f"itself sees {len(registry)}")
        time.sleep(0.2)
        registry.enter("fez", object())

    registry = hats(built_in=import_slowly)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(registry.find, "fez")
        begun.wait()
        others = [pool.submit(registry.find, "fez") for _ in range(3)]
        assert {future.result() for future in others} == {first.result()}
    assert seen == ["itself sees 0"]


def test_a_name_is_checked_by_the_registrys_own_rule() -> None:
    for name in ("Fez", "two words", ""):
        with pytest.raises(DataError, match=f"No hat is called {name!r}"):
            hats().check_name(name, Registry)
    hats(well_formed=str.isidentifier).check_name("Fez", Registry)


def test_a_name_is_taken_once_but_by_the_same_class_of_a_reloaded_module() -> None:
    registry = hats()
    registry.enter("fez", Registry)
    registry.check_name("fez", type("Registry", (), {"__module__": Registry.__module__}))
    for other in (type("Registry", (), {}), type("Fez", (), {"__module__": Registry.__module__})):
        with pytest.raises(DataError, match=r"'fez' is the hat of autopeft\.plugins"):
            registry.check_name("fez", other)
    never = hats(again=lambda there, new: False)
    never.enter("fez", Registry)
    with pytest.raises(DataError, match="is the hat of"):
        never.check_name("fez", Registry)


def test_unknown_names_have_near_matches_and_all_that_there_are() -> None:
    registry = entered("tricorn", "fez", "bowler")
    with pytest.raises(DataError) as caught:
        registry.find("tricorne")
    assert str(caught.value) == (
        "There is no hat 'tricorne'. Did you mean 'tricorn'? There are 3: bowler, fez, tricorn "
        "(tricorn, fez, bowler)."
    )
    assert registry.find("fez") is registry["fez"]
    assert registry.names() == ("bowler", "fez", "tricorn")
    assert list(registry) == ["tricorn", "fez", "bowler"]
    assert registry.get("beret") is None


def test_a_name_may_hold_braces() -> None:
    with pytest.raises(DataError, match=r"There is no hat '\{by\}'"):
        entered("fez").find("{by}")


def test_what_is_built_in_is_imported_once_when_it_is_first_asked_for() -> None:
    asked = []

    def built_in() -> None:
        asked.append(registry.peek("fez"))
        registry.enter("fez", Registry)
        assert "fez" in registry, "what is being imported may look into the registry"

    registry = hats(built_in=built_in)
    assert registry.peek("fez") is None
    assert asked == []
    assert len(registry) == 1
    assert registry.peek("fez") is Registry
    assert registry.names() == ("fez",)
    assert asked == [None]


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The text of each module of a package, which is installed with an entry point for each."""
    texts: dict[str, str] = {}

    def found(group: str) -> list[EntryPoint]:
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
        return [EntryPoint(name, name, group) for name in texts]

    monkeypatch.setattr(plugins, "entry_points", found)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield texts
    for name in texts:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_package", r"ModuleNotFoundError: No module named 'no_such_package'\. Repair"),
        ("1 / 0", r"ZeroDivisionError: division by zero\. Repair"),
        ("import sys\nsys.exit()", r"SystemExit\. Repair"),
        ("raise SystemExit(0)", r"SystemExit: 0\. Repair"),
        ("def", "SyntaxError: invalid syntax"),
        ("from autopeft.errors import UsageError\nraise UsageError('No.')", r"UsageError: No\. Repair"),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_each_time(
    points: dict[str, str], text: str, said: str
) -> None:
    points["broken_hats"] = text
    registry = entered("fez", group="autopeft.hats")
    for look in (lambda: registry.find("fez"), registry.names, lambda: "fez" in registry):
        with pytest.raises(PluginError, match=said) as caught:
            look()
        for part in ("'broken_hats' cannot be used", "'autopeft.hats'", "pip uninstall broken_hats"):
            assert part in str(caught.value)
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value, UsageError)
    points["broken_hats"] = "mended = True"
    assert registry.names() == ("fez",)


@pytest.mark.parametrize("group", OPEN)
def test_each_kind_of_plugin_is_found_through_its_own_group(
    points: dict[str, str], group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = OPEN[group]
    keep(monkeypatch, registry)
    monkeypatch.setattr(registry, "_loaded", False)
    points["broken_plugin"] = "raise RuntimeError('not today')"
    assert registry.group == group
    with pytest.raises(PluginError, match=rf"'broken_plugin'.*group '{group}'.*RuntimeError: not today"):
        registry.names()


@pytest.mark.parametrize("group", OPEN)
def test_an_unknown_name_says_where_other_packages_register(group: str) -> None:
    with pytest.raises(
        UsageError, match=rf"another package registers through the entry-point group '{group}'"
    ):
        OPEN[group].find("nothing_like_it")


def test_metrics_come_with_the_kinds(points: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, KINDS, METRICS)
    monkeypatch.setattr(KINDS, "_loaded", False)
    monkeypatch.setattr(METRICS, "_loaded", False)
    points["broken_plugin"] = "raise RuntimeError('not today')"
    with pytest.raises(PluginError, match="not today"):
        METRICS.find("accuracy")
