"""What a recipe starts from, in words."""

from __future__ import annotations

from autopeft.recipe.core import Recipe
from autopeft.recipe.inputs import address_of

__all__ = ["input_lines"]

_SHORT = 12  # digits of a content's hash


def input_lines(recipe: Recipe) -> list[str]:
    """Each input of a recipe on one line: its name, what it is, its hash in short, and how it acts."""
    lines = []
    for name, item in recipe.inputs.items():
        acts = [
            f"{ref.name} {'is frozen at' if ref.item.frozen else 'starts from'} {start}"
            + ("" if ref.item.merge is None else f", merged by {ref.item.merge.how}")
            for ref in recipe.entries()
            for start in ref.item.start
            if address_of(start)[0] == name
        ]
        content = "" if item.sha256 is None else f", sha256 {item.sha256[:_SHORT]}…"
        lines.append(f"Input {name} ({item}{content}): {', '.join(acts)}.")
    return lines
