from __future__ import annotations

import csv
import importlib
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

# Each process of a test run reads this file before it has a test, so fixtures import what takes long.
if TYPE_CHECKING:
    from lib.replay import Ground

    from autopeft.search.space.bound import BoundSpace

EXPERIMENTS = Path(__file__).parents[1]


# Scripts
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def load(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Imports a script of the experiment that the test module names as `FOLDER`.

    Scripts find each other as neighbours; they are forgotten afterwards.
    """
    folder = EXPERIMENTS / request.module.FOLDER
    own = {path.stem for path in folder.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    path = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = path
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


@pytest.fixture
def script(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Runs `run.py` of the experiment that the test module names; returns what it told on standard error."""

    def run(*options: str) -> str:
        command = [sys.executable, str(EXPERIMENTS / request.module.FOLDER / "run.py"), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    return run


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name a tiny backbone and task."""
    from support.saved_model import BAD, GOOD, NEUTRAL, save_backbone

    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(200):
            word = (GOOD if i % 2 else BAD)[i % 3]
            writer.writerow([f"{NEUTRAL[i % 5]} {'the ' * (i % 9)}{word} {'film ' * (i % 11)}", i % 2])
    model = save_backbone(tmp_path / "model")
    return ["--model", str(model), "--task", str(tmp_path / "data.csv")]


# A recording that nobody trained
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def noise() -> float:
    """Standard deviation between the seeds of `rows`."""
    return 0.02


@pytest.fixture(scope="session")
def space() -> BoundSpace:
    """The space that `rows` are drawn from."""
    from support.landscape import bound_space

    return bound_space("autopeft", layers=3)


@pytest.fixture(scope="session")
def rows(space: BoundSpace, noise: float) -> list[dict[str, Any]]:
    """Rows as a recording has them, of 120 recipes, 30 of them with three seeds.

    The noise of a training is the same at both of its steps.
    """
    from autopeft.counting import Budget
    from autopeft.graph import build_graph
    from autopeft.search.space.repair import repair

    draw, rng = random.Random(0), np.random.default_rng(0)
    found = []
    for index in range(120):
        point = repair(space, space.sample(draw), Budget.parse("100%"))
        for seed in range(3 if index < 30 else 1):
            off = float(rng.normal(0.0, noise))
            score = worth(space, point.values)
            found.append(
                {
                    "hash": build_graph(point.recipe, space.spec).trial_hash(), "seed": seed, "index": index,
                    "origin": "repeat" if seed else "random", "values": point.values,
                    "recipe": point.recipe.to_dict(), "deployed": point.counts.deployed,
                    "scores": {"40": score - 0.1 + off, "80": score + off},
                }
            )  # fmt: skip
    return found


def worth(space: BoundSpace, values: dict[str, Any]) -> float:
    """More layers and a larger parallel adapter are better."""
    choices = space.parameter("parallel_adapter.bottleneck")
    size = dict(zip(choices.choices, choices.sizes, strict=True))[values["parallel_adapter.bottleneck"]]
    on = sum(values[f"layer_{i}.on"] for i in range(3))
    return 0.4 + 0.3 * on / 3 + 0.2 * math.log1p(size) / math.log(65)


@pytest.fixture(scope="session")
def ground(space: BoundSpace, rows: list[dict[str, Any]]) -> Ground:
    """The space with a regression on `rows`."""
    from lib.replay import Ground
    from lib.surrogate import Surrogate

    from autopeft.search.space.space import Space

    surrogate = Surrogate(rows, (40, 80), "boosting", space.spec)
    return Ground(Space.named("autopeft"), "100%", space.spec, surrogate)
