"""Surfaces: what is attacked, one file each.

The file `surfaces/<name>.py` has

- `hostile(random, folder)`: writes one hostile input into the empty folder and returns the call that reads
  it. All that varies comes from `random`, so that a seed makes the same case everywhere; the folder is the
  working folder while the call runs, so that paths can be relative.
- `FIRST`, where it has some: inputs written by hand, by name: `{name: function(folder) -> call}`. They always
  run.
- `SHARE`, where its calls are slow: how many of the random cases it gets, 1 being the usual number.

A call may return or raise `autopeft.errors.AutoPEFTError`; see `harness.py` for what it may not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

__all__ = ["Call", "Case", "First", "Surface", "cases", "surfaces"]

Call = Callable[[], object]
First = Callable[[Path], Call]


@dataclass(frozen=True)
class Surface:
    """Something that reads what a stranger wrote."""

    name: str
    hostile: Callable[[Random, Path], Call]
    first: Mapping[str, First] = field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True)
class Case:
    """One input of a surface: by seed, or one of its first by name."""

    surface: Surface
    seed: int | None = None
    first: str | None = None

    def prepare(self, folder: Path) -> Call:
        """Write the input into an empty folder; returns the call that reads it."""
        if self.first is not None:
            return self.surface.first[self.first](folder)
        return self.surface.hostile(Random(f"{self.surface.name} {self.seed}"), folder)

    def again(self) -> str:
        """The command that tries the case again."""
        which = f"--first {self.first!r}" if self.first is not None else f"--seed {self.seed}"
        return f"python -m tests.fuzz {self.surface.name} {which}"


@cache
def surfaces() -> Mapping[str, Surface]:
    """Every surface by its name, which is that of its file."""
    found = {}
    for file in sorted((Path(__file__).parent / "surfaces").glob("[a-z]*.py")):
        module = importlib.import_module(f"{__package__}.surfaces.{file.stem}")
        found[file.stem] = Surface(
            file.stem, module.hostile, getattr(module, "FIRST", {}), getattr(module, "SHARE", 1.0)
        )
    return found


def cases(chosen: Mapping[str, Surface], total: int, *, start: int = 0) -> list[Case]:
    """The first cases of these surfaces, then at least `total` random ones divided by their shares, with
    seeds from `start`."""
    found = [Case(surface, first=name) for surface in chosen.values() for name in surface.first]
    shares = sum(surface.share for surface in chosen.values())
    for surface in chosen.values():
        number = max(1, -int(-total * surface.share // shares))
        found += [Case(surface, seed=start + i) for i in range(number)]
    return found
