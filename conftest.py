"""What holds for every test of the project."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator
from typing import Any

# Read when torch is imported, here and in every process that a test starts. The models of the tests are tiny:
# threads gain nothing, and where other work wants the cores they wait for each other, ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from support import selection
from support.fast import is_fast

# Only a machine that loses its power would show the difference, and the tests write thousands of small files.
os.fsync = lambda fd: None

# A slow machine is no error. Properties that say how many examples they need keep their own number.
settings.register_profile("autopeft", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=400)  # --hypothesis-profile thorough
settings.load_profile("autopeft")


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts the tests in the background lets them, and what they start, ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    selection.without_slow = "not slow" in config.option.markexpr
    if config.option.markexpr == "fast" and config.option.durations is None:
        config.option.durations = 10


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items if config.option.markexpr == "fast" else ():
        long = any(item.get_closest_marker(name) for name in ("slow", "mutants", "clients"))
        if not long and is_fast(item.nodeid):
            item.add_marker("fast")
    # The longest first, so that at the end of a run no core waits for it.
    items.sort(key=lambda item: item.path.name != "test_second_device.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collecting the tests makes millions of objects that stay. They are no garbage, neither while they are
    made, of which looking took a third, nor for each `gc.collect` of a trial."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


_started: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    # Every change of a tensor's class is an event, too: what it names may take long to say.
    if event not in ("subprocess.Popen", "os.posix_spawn", "os.fork"):
        return
    named = str(arguments[0]) if arguments else ""
    words = list(arguments[1]) if event == "subprocess.Popen" else []
    # Python itself asks `uname` once what machine this is; models that are not there yet are fetched by pip.
    if named != "uname" and words[1:4] != ["-m", "pip", "download"]:
        _started.append(f"{event}{arguments[:2]}")


sys.addaudithook(_note)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """In a run of the fast tests, none starts a process, in its fixtures or by itself."""
    result = yield
    if item.config.option.markexpr == "fast" and _started:
        pytest.fail(f"A fast test starts a process: name it in tests/support/fast.py. {_started[0][:300]}")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    """Each test draws the same numbers, alone or after any other: with some, all ReLUs are dead."""
    _started.clear()
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    return (yield)
