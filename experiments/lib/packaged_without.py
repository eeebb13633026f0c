"""Packaged tasks without the rows that earlier rounds have tested on."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft import load_task
from autopeft.tasks import load
from autopeft.tasks.packaged import Packaged, read_splits

__all__ = ["without_rows"]

_gone: dict[str, frozenset[str]] = {}
_rounds: dict[str, tuple[tuple[int, ...], ...]] = {}


def without_rows(name: str, *rounds: Sequence[int]) -> frozenset[str]:
    """From now on, a packaged task lacks the rows that were in *test* in earlier rounds, in this process;
    returns their texts.

    A split is drawn from all rows of the pool, so a confirmation with another seed would test on a tenth of
    the same ones.

    Args:
        rounds: the seeds of each, in their order: a round drew from what those before it had left.
    """
    load.read_splits = _kept  # type: ignore[assignment]
    asked = tuple(map(tuple, rounds))
    if _rounds.get(name) != asked:
        _gone[name] = frozenset()
        for seeds in asked:
            tested = [load_task(name, seed=seed).splits["test"].texts for seed in seeds]
            _gone[name] = _gone[name].union(*tested)
        _rounds[name] = asked
    return _gone[name]


def _kept(task: Packaged, notify: load.Notify) -> dict[str, tuple[Sequence[object], list[object]]]:
    """The parts of a packaged task, as the package reads them, without those rows."""
    found, gone = read_splits(task, notify), _gone.get(task.name)
    if not gone:
        return found
    parts = {}
    for part, (texts, labels) in found.items():
        stay = [i for i, text in enumerate(texts) if text not in gone]
        parts[part] = ([texts[i] for i in stay], [labels[i] for i in stay])
    return parts
