from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def load(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Imports a script of the experiment that the test module names as `FOLDER`.

    Scripts find each other as neighbours; they are forgotten afterwards.
    """
    folder = EXPERIMENTS / request.module.FOLDER
    own = {path.stem for path in folder.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(folder))
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
