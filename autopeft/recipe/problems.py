"""Problems of a file, gathered and reported all at once, each with its line and its place.

Trees read from YAML are `MarkedDict` and `MarkedList`: plain containers that also know on which line each of
their children stands. Plain dicts and lists work as well; their problems come without lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.errors import RecipeError

__all__ = ["MarkedDict", "MarkedList", "Path", "Problem", "Problems", "copy_lines", "dotted", "line_of"]

Path = tuple[str | int, ...]


class MarkedDict(dict[str, Any]):
    """A mapping whose `lines` give the 1-based line of each key; `line` is where the mapping starts."""

    def __init__(self, items: Mapping[str, Any] | None = None, line: int | None = None) -> None:
        super().__init__(items or {})
        self.line = line
        self.lines: dict[str, int] = {}


class MarkedList(list[Any]):
    """A sequence whose `lines` give the 1-based line of each element; `line` is where the sequence starts."""

    def __init__(self, items: Iterable[Any] = (), line: int | None = None) -> None:
        super().__init__(items)
        self.line = line
        self.lines: list[int] = []


def copy_lines(source: Any, target: MarkedDict) -> MarkedDict:
    """Give `target` the lines of `source`, where `source` has some; returns `target`."""
    if isinstance(source, MarkedDict):
        target.line = source.line
        target.lines = dict(source.lines)
    return target


def dotted(path: Path) -> str:
    """`("layers", 0, "attach")` as `layers[0].attach`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def line_of(tree: Any, path: Path) -> int | None:
    """The line of the deepest part of `path` that exists in `tree`, or `None` in a tree without lines."""
    line = tree.line if isinstance(tree, (MarkedDict, MarkedList)) else None
    for part in path:
        if isinstance(tree, MarkedDict) and isinstance(part, str) and part in tree:
            line, tree = tree.lines.get(part, line), tree[part]
        elif isinstance(tree, MarkedList) and isinstance(part, int) and part < len(tree):
            line, tree = (tree.lines[part] if part < len(tree.lines) else line), tree[part]
        else:
            break
    return line


@dataclass(frozen=True)
class Problem:
    """An error at a `path` of the tree; `line` where it is known."""

    path: Path
    message: str
    line: int | None = None

    def text(self, source: str) -> str:
        place = source if self.line is None else f"{source}:{self.line}"
        return f"{place}: {dotted(self.path)}: {self.message}" if self.path else f"{place}: {self.message}"


# Problems in one message, and its characters: what fits on a screen.
_MOST, _MOST_TEXT = 20, 4000


@dataclass
class Problems:
    """Gathers problems of one `tree` that was read from `source` (a file name, or what stands for one).

    With more problems than fit on a screen, reading ends.

    Attributes:
        outer: problems of a larger tree that hears of these as well, of which `tree` is filled for the place
            `path`.
    """

    tree: Any
    source: str
    found: list[Problem] = field(default_factory=list)
    outer: Problems | None = None
    path: Path = ()

    def inside(self, tree: Any, path: Path) -> Problems:
        """Problems of a tree that stands at `path` of this one, or that was made for this place."""
        return Problems(tree, self.source, outer=self, path=path)

    def add(self, path: Path, message: str) -> None:
        """Note a problem.

        Raises:
            RecipeError: there are too many to go on.
        """
        self.note(Problem(path, message, line_of(self.tree, path)))

    def note(self, problem: Problem) -> None:
        """Note a problem whose line is known (errors: see `add`)."""
        self.found.append(problem)
        if self.outer is not None:
            path = (*self.path, *problem.path)
            line = problem.line or line_of(self.outer.tree, path)
            known = Problem(path, problem.message, line)
            if known not in self.outer.found:
                self.outer.note(known)
        elif len(self.found) > _MOST:
            self.check()

    def check(self, error: type[RecipeError] = RecipeError) -> None:
        """Raise one error that holds all problems found, in the order of their lines, if there are any."""
        if self.found:
            unique = list(dict.fromkeys(self.found))
            unique.sort(key=lambda p: p.line or 0)
            lines = [p.text(self.source) for p in unique[:_MOST]]
            while len(lines) > 1 and sum(map(len, lines)) > _MOST_TEXT:
                lines.pop()
            more = ["… and there may be more; mend these first."] if len(unique) > len(lines) else []
            raise error("\n".join([*lines, *more]))
