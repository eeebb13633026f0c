"""How large a recipe or space is with its copies and variables written out, without writing it out.

Four nested routes of 64 copies each are a line of text and 16 million entries. Values are counted in closed
form: sums over lists, mappings and choices, products with copies, and each variable once.
"""

from __future__ import annotations

from typing import Any

from autopeft.composition import get_composition, is_composition
from autopeft.recipe.problems import Problems

__all__ = ["MAX_NESTING", "MOST_COPIES", "MOST_VALUES", "check_size", "written_out"]

MAX_NESTING = 20
MOST_COPIES = 64
MOST_VALUES = 10_000
_LETTERS = 40  # a text counts one value for so many letters
_MOST_DIGITS = 300  # as in files


class _TooLargeError(Exception):
    """Nesting went beyond the bound, perhaps without an end, or a number has too many digits."""


def check_size(tree: Any, problems: Problems) -> None:
    """Refuse a tree that is too large or too deeply nested once it is written out.

    Raises:
        RecipeError: it is; the message says how large it is.
    """
    try:
        size = written_out(tree)
    except _TooLargeError as error:
        problems.add((), str(error))
    else:
        if size > MOST_VALUES:
            shown = f"{size:,}" if size < 10**12 else "more than a million millions of"
            problems.add(
                (),
                f"with copies and variables written out this has {shown} values, and at most "
                f"{MOST_VALUES:,} are read; take fewer entries, copies or uses of a variable.",
            )
    problems.check()


def written_out(tree: Any) -> int:
    """The number of keys, elements and values of a tree; one of a space has its variables under `vars`."""
    count = _Count()
    variables = tree.get("vars") if isinstance(tree, dict) else None
    if isinstance(variables, dict):
        # In the order of the file: a variable can use those above it alone.
        for name, body in variables.items():
            count.variables[f"${name}"] = (count.size(body), count.copies(body))
    return count.size(tree)


class _Count:
    """Sizes of trees; `variables` gives the size of each `$name`, and the most copies that it stands for."""

    def __init__(self) -> None:
        self.variables: dict[str, tuple[int, int]] = {}
        self._known: dict[int, tuple[int, int]] = {}

    def size(self, tree: Any) -> int:
        return self._measure(tree, 0)[0]

    def _measure(self, tree: Any, depth: int) -> tuple[int, int]:
        """Size and height of a tree."""
        if isinstance(tree, str):
            used = self.variables.get(tree)
            return (1 + len(tree) // _LETTERS if used is None else used[0]), 0
        if not isinstance(tree, (dict, list, tuple)):
            if isinstance(tree, int) and tree.bit_length() > _MOST_DIGITS * 4:
                raise _TooLargeError(f"a number of more than {_MOST_DIGITS} digits; write a smaller one.")
            return 1, 0
        # Trees from Python may hold one container in several places, and even within itself.
        known = self._known.get(id(tree))
        if depth + (1 if known is None else known[1]) > MAX_NESTING:
            raise _TooLargeError(f"nested more than {MAX_NESTING} levels deep; flatten it.")
        if known is None:
            size = height = 1
            for key, value in tree.items() if isinstance(tree, dict) else ((None, value) for value in tree):
                inner, below = self._measure(value, depth + 1)
                if key is not None:
                    size += 1 + len(str(key)) // _LETTERS
                    inner += self._copied(key, value, depth + 1)
                size += inner
                height = max(height, 1 + below)
            known = self._known[id(tree)] = size, height
        return known

    def _copied(self, key: Any, body: Any, depth: int) -> int:
        """How many values the further copies in a composition have."""
        if not isinstance(body, dict) or not isinstance(key, str) or not is_composition(key):
            return 0
        if not get_composition(key).traits.copies:
            return 0
        return (self.copies(body.get("copies")) - 1) * (self._measure(body.get("children"), depth + 1)[0] - 1)

    def copies(self, value: Any) -> int:
        """The largest number of copies that a value may stand for."""
        if isinstance(value, str):
            return self.variables.get(value, (1, 1))[1]
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            return max([1, *map(self.copies, value)])
        # More copies are refused, whatever they would be of.
        return min(max(value, 1), MOST_COPIES) if isinstance(value, int) else 1
