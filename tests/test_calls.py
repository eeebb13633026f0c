"""One search from `search(...)` to its scores, every call watched: no room calls one above it but through
callbacks that are declared here."""

from __future__ import annotations

import configparser
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.registries import keep
from support.saved_model import save_backbone, write_reviews

import autopeft
from autopeft.composition.registry import REGISTRY as COMPOSITIONS
from autopeft.method.registry import REGISTRY as METHODS
from autopeft.search.core.events import SilentReporter
from autopeft.search.core.jobs import Done, JobSource
from autopeft.search.optimization.samplers import SAMPLERS
from autopeft.search.strategies.registry import STRATEGIES
from autopeft.tasks.kinds.registry import KINDS, METRICS

LINTER = Path(__file__).parents[1] / ".importlinter"
SPACE = """\
autopeft: 2
name: small
layers:
  - at: all
    attach:
      - gate:
          - adalora: {rank: {choice: [1, 2, 4, 8]}, sites: [q, v]}
          - prefix_tuning: {length: 2}
training: {learning_rate: {float: [1.0e-3, 1.0e-2], log: true}}
"""
Call = tuple[str, str, str]  # caller's module, callee's module, callee's name


@dataclass(frozen=True)
class Callback:
    """Functions that a lower room is handed and calls. `caller` and `callee` are modules, or packages of
    them. With `once`, what they return is kept, and another test of this process may have asked before."""

    caller: str
    callee: str
    names: tuple[str, ...]
    why: str
    once: bool = False

    def covers(self, call: Call) -> bool:
        def inside(module: str, package: str) -> bool:
            return f"{module}.".startswith(f"{package}.")

        return inside(call[0], self.caller) and inside(call[1], self.callee) and call[2] in self.names


CALLBACKS = (
    Callback(
        "autopeft.arguments",
        "autopeft.search.planning.option_checks",
        ("space_name", "check_baselines", "check_budget", "check_space"),
        "An option is declared with the functions that check it or write it down.",
    ),
    Callback(
        "autopeft.arguments",
        "autopeft.search.planning.option_checks",
        (
            "baselines",
            "fidelities",
            "goals",
            "objectives",
            "poolings",
            "precisions",
            "ranks",
            "samplers",
            "servings",
            "strategies",
            "trackers",
        ),
        "An option is declared with a function that lists its choices.",
        once=True,
    ),
    Callback(
        "autopeft.arguments",
        "autopeft.training.options",
        ("in_memory", "_check_model", "check_task"),
        "Checks of the options that several functions share.",
    ),
    Callback(
        "autopeft.arguments",
        "autopeft.training.options",
        ("metric_text", "words_text"),
        "A metric that is a function is written down by its name, and label words as text.",
    ),
    Callback(
        "autopeft.arguments",
        "autopeft.training.options",
        ("_head_starts", "_precisions", "_quantized", "efforts"),
        "Choices of the options that several functions share.",
        once=True,
    ),
    Callback(
        "autopeft.arguments.call",
        "autopeft.search.api",
        ("search",),
        "The decorator `takes` calls the function that it decorates.",
    ),
    Callback(
        "autopeft.search.execution.logged_jobs",
        "autopeft.search.controller.controller",
        ("complete", "next", "progress", "scale"),
        "What keeps the logs of jobs passes on what the executor asks of the job source.",
    ),
    Callback(
        "autopeft.training",
        "autopeft.search.execution",
        ("step", "keep"),
        "A training tells each step, and hands over the trained hybrid before it is taken down.",
    ),
    Callback(
        "autopeft.search.controller.controller",
        "autopeft.search.api",
        ("keep",),
        "The controller hands each finished record to whoever keeps the run folder.",
    ),
    Callback(
        "autopeft.search.selection.verdicts",
        "autopeft.search.api",
        ("<lambda>",),
        "Whether a baseline lies inside budget and limits is asked of the search, which knows both.",
    ),
    Callback(
        "autopeft.search.selection",
        "autopeft.search.controller.controller",
        ("_fits", "_known"),
        "What follows a search asks for what there is time, and what of it is known.",
    ),
    Callback(
        "autopeft.search.strategies",
        "autopeft.search.controller.checkpoints",
        ("put", "get", "drop", "size"),
        "A strategy keeps checkpoints of paused trials in a `CheckpointStore` that it is given.",
    ),
    Callback(
        "autopeft.search.optimization.study",
        "autopeft.search.strategies.trials",
        ("repaired",),
        "The study has proposals repaired into the budget by a function that it is given.",
    ),
    Callback(
        "autopeft.methods",
        "autopeft.injection.regions",
        ("region",),
        "A module that takes a region's place asks for the frozen region.",
    ),
    Callback(
        "autopeft.composition",
        "autopeft.injection.bind",
        ("delta", "key_value", "reads"),
        "A composition asks its children, which the injection binds to the forward that is under way.",
    ),
    Callback(
        "autopeft.hybrid.prediction",
        "autopeft.training.forward",
        ("__call__",),
        "A hybrid that stands for several models averages forwards of whoever evaluates it.",
    ),
    Callback(
        "autopeft.assets.cache",
        "autopeft.tasks.tokens",
        ("fill",),
        "The cache on disk has a missing entry of tokens written by who asked for it.",
    ),
    Callback(
        "autopeft.assets.cache",
        "autopeft.training.trunk.store",
        ("<lambda>",),
        "The same for stored states of the layers below everything that a recipe alters.",
    ),
    *(
        Callback("autopeft.plugins", registry, ("<lambda>",), "A registry imports what is built in.")
        for registry in (
            "autopeft.method.registry",
            "autopeft.composition.registry",
            "autopeft.tasks.kinds.registry",
            "autopeft.search.strategies.registry",
        )
    ),
)


# Where a module lies
# ------------------------------------------------------------------------------------------------------


class Rooms:
    """The layers of `.importlinter`: height 0 is the lowest."""

    def __init__(self, text: str) -> None:
        parser = configparser.ConfigParser()
        parser.read_string(text)
        self.rooms = self._layers(parser["importlinter:contract:rooms"]["layers"])
        self.search = self._layers(parser["importlinter:contract:search"]["layers"])
        forbidden = parser["importlinter:contract:methods"]["forbidden_modules"].split()
        # Methods stand above all that they may import.
        allowed = self.rooms.keys() - {name.partition(".")[2] for name in forbidden}
        self.rooms["methods"] = max(self.rooms[name] for name in allowed) + 0.5

    @staticmethod
    def _layers(text: str) -> dict[str, float]:
        lines = [line for line in text.splitlines() if line.strip()]
        return {
            name.strip(): float(height)
            for height, line in enumerate(reversed(lines))
            for name in line.replace("|", ":").split(":")
        }

    def upward(self, caller: str, callee: str) -> bool:
        """Whether a call between two modules goes up."""
        (from_room, from_part), (to_room, to_part) = map(self._place, (caller, callee))
        if from_room != to_room:
            return from_room < to_room
        return None not in (from_part, to_part) and from_part < to_part  # type: ignore[operator]

    def _place(self, module: str) -> tuple[float, float | None]:
        package, room, part, *_ = [*module.split("."), "", ""]
        if package == "methods":
            room = "methods"
        height = self.rooms.get(room, max(self.rooms.values()) + 1)  # `autopeft` itself is above all
        return height, self.search.get(part) if room == "search" else None


@contextmanager
def watched() -> Iterator[set[Call]]:
    """Every call from one module of this package to another while the block runs."""
    seen: set[Call] = set()

    def own(module: str) -> bool:
        return module.partition(".")[0] in ("autopeft", "methods")

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_back is None:
            return
        callee, caller = frame.f_globals.get("__name__", ""), frame.f_back.f_globals.get("__name__", "")
        if callee != caller and own(callee) and own(caller):
            seen.add((caller, callee, frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def run_here(
    source: JobSource,
    runner: Callable[..., Any],
    setup: Any,
    *args: Any,
    ending: Callable[[], None],
    **_: Any,
) -> None:
    """Every job of a source in this process."""
    source.scale(1)
    while not isinstance(job := source.next(), Done):
        assert job is not None
        source.complete(runner(setup, job, lambda n, x, j=job: source.progress(j.id, n, x), lambda: False))
    ending()


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> set[Call]:
    from autopeft.search.execution import ray_executor

    folder = tmp_path_factory.mktemp("search")
    save_backbone(folder / "bert")
    write_reviews(folder / "reviews.csv")
    (folder / "space.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        registries = (METHODS, COMPOSITIONS, KINDS, METRICS, SAMPLERS, STRATEGIES)
        keep(patch, *registries)
        for registry in registries:  # as in a process that has asked none of them yet
            patch.setattr(registry, "_loaded", False)
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        patch.setattr(ray_executor, "run_jobs", run_here)
        with watched() as seen:
            result = autopeft.search(
                task=str(folder / "reviews.csv"), text="body", label="verdict", model=str(folder / "bert"),
                space=str(folder / "space.yaml"), budget="5%", trials=3, steps=120, confirm=1,
                confirm_seeds=1, baselines="middle", workers=1, max_length=24, batch_size=16,
                out=str(folder / "run"), reporter=SilentReporter(),
            )  # fmt: skip
    assert result.confirmed
    return seen


def problems(calls: set[Call], rooms: Rooms, declared: tuple[Callback, ...]) -> list[str]:
    """A sentence for each upward call that nothing declares, and each declaration that stands for none."""
    up = {call for call in calls if rooms.upward(call[0], call[1])}
    found = [
        f"{caller} calls {callee}.{name}, which lies above it."
        for caller, callee, name in sorted(up)
        if not any(d.covers((caller, callee, name)) for d in declared)
    ]
    for d in (d for d in declared if not d.once):
        happened = {name for *modules, name in up if d.covers((*modules, name))}  # type: ignore[arg-type]
        found += [
            f"{d.caller} never calls {d.callee}.{name}: drop it." for name in d.names if name not in happened
        ]
    return found


def test_no_room_calls_one_above_it(calls: set[Call]) -> None:
    assert problems(calls, Rooms(LINTER.read_text()), CALLBACKS) == []


def test_the_whole_way_was_watched(calls: set[Call]) -> None:
    met = {
        module.split(".")[1] for caller, callee, _ in calls for module in (caller, callee) if "." in module
    }
    assert met >= Rooms(LINTER.read_text()).rooms.keys() - {
        *("cli", "report", "export", "display", "errors", "interruption")
    }
    parts = {m.split(".")[2] for c, d, _ in calls for m in (c, d) if m.startswith("autopeft.search.")}
    assert parts >= Rooms(LINTER.read_text()).search.keys()
    for step in (
        ("autopeft.search.api", "autopeft.search.planning.prepare", "prepare"),
        ("autopeft.search.strategies.trials", "autopeft.search.optimization.study", "propose"),
        ("autopeft.search.execution.worker", "autopeft.search.execution.runners", "_train"),
        ("autopeft.search.execution.runners", "autopeft.training.trial", "run_trial"),
        ("autopeft.search.controller.finish", "autopeft.search.selection.significance", "compare"),
    ):
        assert step in calls


def test_upward_calls_and_stale_declarations_are_told() -> None:
    rooms = Rooms(LINTER.read_text())
    calls = {
        ("autopeft.training.loop", "autopeft.report.text", "duration"),  # up, between rooms
        ("autopeft.search.space.bound", "autopeft.search.controller.finish", "finish"),  # up, inside search
        ("autopeft.methods.selective.structured.bitfit", "autopeft.recipe.core", "hash"),  # up, from a method
        ("autopeft.assets.cache", "autopeft.tasks.tokens", "fill"),  # up, and declared
        ("autopeft.report.text", "autopeft.training.loop", "f"),  # down
        ("autopeft.hybrid.hybrid", "autopeft.methods.selective.structured.bitfit", "f"),  # down
        ("autopeft.search.controller.finish", "autopeft.search.space.bound", "f"),  # down
        ("autopeft.training.loop", "autopeft.tasks.encode", "f"),  # beside it
        ("autopeft.search.api", "autopeft.search", "f"),  # the room's own door
    }
    declared = (
        Callback("autopeft.assets", "autopeft.tasks", ("fill", "never"), ""),
        Callback("autopeft.tasks", "autopeft.assets", ("fill",), ""),
    )
    assert problems(calls, rooms, declared) == [
        "autopeft.methods.selective.structured.bitfit calls autopeft.recipe.core.hash, which lies above it.",
        "autopeft.search.space.bound calls autopeft.search.controller.finish.finish, which lies above it.",
        "autopeft.training.loop calls autopeft.report.text.duration, which lies above it.",
        "autopeft.assets never calls autopeft.tasks.never: drop it.",
        "autopeft.tasks never calls autopeft.assets.fill: drop it.",
    ]


def test_a_call_is_seen() -> None:
    with watched() as seen:
        autopeft.Recipe.from_dict({"layers": [{"attach": ["lora"]}]})
    assert any(callee == "autopeft.recipe.parse" for _, callee, _ in seen)
    assert sys.getprofile() is None
