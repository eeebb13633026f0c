"""A folder of somebody's own beside what it may not lead to."""

from __future__ import annotations

from pathlib import Path

__all__ = ["own_folder"]


def own_folder(place: Path) -> Path:
    """Write `own/a`, `own/inner/b` and, outside of it, `secret`; returns `own`."""
    folder = place / "own"
    (folder / "inner").mkdir(parents=True)
    (place / "secret").write_text("theirs")
    (folder / "a").write_text("mine")
    (folder / "inner" / "b").write_text("mine too")
    return folder
