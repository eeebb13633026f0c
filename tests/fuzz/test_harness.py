"""The harness sees what a call may not do, and cases come again as they were."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from autopeft.errors import DataError
from fuzz import harness, mutate
from fuzz.canary import MODULE, SIGN
from fuzz.harness import Bench, bench
from fuzz.surface import Call, Case, Surface, cases, surfaces


@pytest.fixture(scope="module")
def place() -> Iterator[Bench]:
    with bench() as found:
        yield found


def of(call: Callable[[], object]) -> Case:
    return Case(Surface("toy", lambda random, folder: call), seed=0)


def raising(error: BaseException) -> Callable[[], object]:
    def call() -> object:
        raise error

    return call


def saying(message: str) -> DataError:
    """An error with this very message, which it would shorten itself."""
    error = DataError()
    error.args = (message,)
    return error


def not_followed(link: Path) -> None:
    link.symlink_to("../outside/secret.csv")
    with suppress(OSError):
        os.open(link, os.O_RDONLY | os.O_NOFOLLOW)


def busy() -> None:
    while True:
        with suppress(Exception):
            time.sleep(0.01)


GOOD: dict[str, Callable[[], object]] = {
    "it returns": lambda: None,
    "it refuses in a sentence": raising(DataError("What came, what is allowed.")),
    "it opens what is its own": lambda: Path("own").write_text("x"),
    "it does not follow a link that leads outside": lambda: not_followed(Path("link")),
}
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "another error": (raising(KeyError("a")), "KeyError: \"'a'\""),
    "an exit": (raising(SystemExit(2)), "SystemExit"),
    "Ctrl-C": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "an error without words": (raising(DataError(" ")), "says nothing"),
    "an error of many lines": (raising(saying("a\n" * 100)), "200 letters in 101 lines"),
    "an error of many letters": (raising(saying("a" * 7000)), "7,000 letters"),
    "an error with a command": (raising(saying("a\x1b[2J")), "what a terminal acts on"),
    "too much time": (busy, "more than 0.3 s"),
    "too much memory": (lambda: bytearray(b"x") * (120 << 20), "it took 1"),
    "a file that code writes": (lambda: Path(SIGN).touch(), "EXECUTED was written"),
    "an import": (lambda: importlib.import_module(MODULE), f"the module {MODULE}"),
    "a process": (lambda: sys.audit("os.system", "ls"), "a process was started"),
    "a name of another host": (lambda: sys.audit("socket.getaddrinfo", "example.org", 80), "looked up"),
    "a file outside": (lambda: Path("../outside/secret.csv").read_text(), "outside the input's folder"),
    "a link that leads outside": (
        lambda: (Path("link").symlink_to("../outside/secret.csv"), Path("link").read_text()),
        "outside the input's folder",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_call_may_do(name: str, place: Bench) -> None:
    assert place.attempt(of(GOOD[name])) is None


@pytest.mark.parametrize("name", BAD)
def test_what_a_call_may_not_do(name: str, place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0.3)
    monkeypatch.setattr(harness, "MEGABYTES", 100)
    call, words = BAD[name]
    finding = place.attempt(of(call))
    assert finding is not None
    assert words in finding.what
    assert "python -m tests.fuzz toy --seed 0" in str(finding)
    assert place.attempt(of(lambda: None)) is None, "the next case is not blamed"


def test_a_slow_processor_has_more_time(place: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", 0.1)
    waits = of(lambda: time.sleep(0.3))
    monkeypatch.setattr(harness, "_REFERENCE", 1e3)
    assert place.attempt(waits) is not None, "a fast processor has no less than the seconds that are told"
    monkeypatch.setattr(harness, "_REFERENCE", 1e-6)
    assert place.attempt(waits) is None


def test_an_alarm_that_was_set_before_still_comes(place: Bench) -> None:
    came = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: came.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        place.attempt(of(lambda: None))
        time.sleep(0.4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert came == [signal.SIGALRM]


def test_each_case_has_an_empty_folder_of_its_own(place: Bench) -> None:
    found: list[list[str]] = []

    def hostile(random: Random, folder: Path) -> Call:
        assert Path.cwd() == folder
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("x")
        os.chmod(folder / "sub", 0)
        return lambda: found.append(sorted(p.name for p in Path.cwd().iterdir()))

    here = Path.cwd()
    for seed in range(2):
        assert place.attempt(Case(Surface("toy", hostile), seed=seed)) is None
    assert found == [["sub"], ["sub"]]
    assert Path.cwd() == here


def test_a_seed_is_one_case() -> None:
    valid = {"a": [1, {"b": 2.5}], "c": "text"}
    drawn = [mutate.written(Random(i), mutate.tree(Random(i), valid)) for i in range(300)]
    assert drawn == [mutate.written(Random(i), mutate.tree(Random(i), valid)) for i in range(300)]
    assert len(set(drawn)) > 150
    texts = [mutate.text(Random(i), "a: 1\nb: [c, d]\n") for i in range(300)]
    assert texts == [mutate.text(Random(i), "a: 1\nb: [c, d]\n") for i in range(300)]
    assert len(set(texts)) > 200
    assert valid == {"a": [1, {"b": 2.5}], "c": "text"}, "what is valid stays so"


def test_what_was_yaml_is_written_as_yaml_too() -> None:
    tree = mutate.of_yaml("a: 1\nb: [c, {d: 2.5}]\n")
    drawn = {mutate.written(Random(i), tree) for i in range(20)}
    assert b"a: 1\nb:\n- c\n- {d: 2.5}\n" in drawn
    assert any(json.loads(text) == tree for text in drawn if text.startswith(b"{"))


def test_numbers_that_python_does_not_write_out_are_mutated_too() -> None:
    large = {"a": 10**5000, "b": -(10**5000)}
    assert sum(mutate.tree(Random(i), large) != large for i in range(200)) > 100


def test_cases_are_the_first_ones_and_shares_of_the_number() -> None:
    def hostile(random: Random, folder: Path) -> Call:
        return lambda: None

    chosen = {
        "fast": Surface("fast", hostile, {"x": lambda folder: lambda: None}),
        "slow": Surface("slow", hostile, share=0.25),
    }
    found = cases(chosen, 100, start=7)
    assert [c.first for c in found if c.first] == ["x"]
    assert [c.seed for c in found if c.surface.name == "fast" and c.first is None] == list(range(7, 87))
    assert [c.seed for c in found if c.surface.name == "slow"] == list(range(7, 27))


def test_surfaces_are_files() -> None:
    files = {p.stem for p in (Path(__file__).parent / "surfaces").glob("*.py")} - {"__init__"}
    assert set(surfaces()) == files
    assert {"recipe", "space"} <= files
