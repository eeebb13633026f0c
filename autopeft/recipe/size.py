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
    known: dict[int, tuple[int, int]] = {}
    variables: dict[str, tuple[int, int]] = {}  # of each `$name` its size, and the most copies it stands for
    named = tree.get("vars") if isinstance(tree, dict) else None
    if isinstance(named, dict):
        # In the order of the file: a variable can use those above it alone.
        for name, body in named.items():
            variables[f"${name}"] = (_measure(body, 0, variables, known)[0], _copies(body, variables))
    return _measure(tree, 0, variables, known)[0]


def _measure(
    tree: Any, depth: int, variables: dict[str, tuple[int, int]], known: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """Size and height of a tree that lies `depth` levels deep; `known` has the measured ones by id."""
    if isinstance(tree, str):
        used = variables.get(tree)
        return (1 + len(tree) // _LETTERS if used is None else used[0]), 0
    if not isinstance(tree, (dict, list, tuple)):
        if isinstance(tree, int) and tree.bit_length() > _MOST_DIGITS * 4:
            raise _TooLargeError(f"a number of more than {_MOST_DIGITS} digits; write a smaller one.")
        return 1, 0
    # Trees from Python may hold one container in several places, and even within itself.
    found = known.get(id(tree))
    if depth + (1 if found is None else found[1]) > MAX_NESTING:
        raise _TooLargeError(f"nested more than {MAX_NESTING} levels deep; flatten it.")
    if found is not None:
        return found
    size = height = 1
    for key, value in tree.items() if isinstance(tree, dict) else ((None, value) for value in tree):
        inner, below = _measure(value, depth + 1, variables, known)
        size += inner
        height = max(height, 1 + below)
        if key is None:
            continue
        size += 1 + len(str(key)) // _LETTERS
        # The further copies of the children of a composition.
        composed = isinstance(value, dict) and isinstance(key, str) and is_composition(key)
        if composed and get_composition(key).traits.copies:
            children = _measure(value.get("children"), depth + 2, variables, known)[0]
            size += (_copies(value.get("copies"), variables) - 1) * (children - 1)
    known[id(tree)] = size, height
    return size, height


def _copies(value: Any, variables: dict[str, tuple[int, int]]) -> int:
    """The largest number of copies that a value may stand for."""
    if isinstance(value, str):
        return variables.get(value, (1, 1))[1]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return max([1, *(_copies(part, variables) for part in value)])
    # More copies are refused, whatever they would be of.
    return min(max(value, 1), MOST_COPIES) if isinstance(value, int) else 1
