"""Packaged tasks without the rows that an earlier round has tested on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from autopeft import load_task
from autopeft.tasks import load
from autopeft.tasks.packaged import Packaged, read_splits

__all__ = ["tested_rows", "without_rows"]


@lru_cache
def tested_rows(name: str, seeds: Sequence[int]) -> frozenset[str]:
    """Texts of the *test* splits that a packaged task has with these seeds."""
    return frozenset(text for seed in seeds for text in load_task(name, seed=seed).splits["test"].texts)


def without_rows(name: str, seeds: Sequence[int]) -> None:
    """From now on, a packaged task lacks the rows that were in *test* with these seeds, in this process.

    A split is drawn from all rows of the pool, so a confirmation with another seed would test on a tenth of
    the same ones.
    """
    gone = tested_rows(name, tuple(seeds))

    def kept(task: Packaged, notify: load.Notify) -> dict[str, tuple[Sequence[object], list[object]]]:
        found = read_splits(task, notify)
        if task.name != name:
            return found
        parts = {}
        for part, (texts, labels) in found.items():
            stay = [i for i, text in enumerate(texts) if text not in gone]
            parts[part] = ([texts[i] for i in stay], [labels[i] for i in stay])
        return parts

    load.read_splits = kept  # type: ignore[assignment]
