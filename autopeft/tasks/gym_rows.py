"""Rows of a procedural task, made in a process of its own: `gym.py` starts this file as a script.

It imports nothing of this package, so that the process starts without torch. Generators walk over sets here
and there, whose order is that of the hash seed, and a parameter can send one into work without an end: a
process of its own has a fixed hash seed and can be stopped.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["BLOCK", "MOST_LETTERS", "ROUND", "Row", "draw", "starts"]

Row = tuple[int, int, str, str]
"""Seed of its generator, index in it, question, answer."""

BLOCK = 1 << 18
"""Generator seeds of one split. Many generators make row i from the seed plus i, so splits lie apart."""
_SEEDS = 1 << 32  # what generators take
ROUND = {"test": 1, "select": 1, "train": 8}
"""Rows that each split tries for in its turn, in the order of turns."""
MOST_LETTERS = 20_000
"""Of a question or an answer."""
_STALE = 300  # rounds without a new prompt, after which there is none left to find
_MOST_MEMORY = 4 << 30


def starts(seed: int) -> dict[str, int]:
    """The first generator seed of each split; those of two splits never meet, and of two task seeds only
    where they are alike modulo 5,461."""
    blocks = len(ROUND)
    first = seed % (_SEEDS // BLOCK // blocks) * blocks
    return {name: (first + k) * BLOCK for k, name in enumerate(ROUND)}


def draw(
    make: dict[str, Callable[[int], tuple[str, str]]], seeds: dict[str, int], wanted: dict[str, int]
) -> dict[str, list[Row]]:
    """Rows of each split, none of whose prompts stands twice, in one split or in two.

    Splits take turns, and a prompt belongs to the first that makes it. A row depends on those before it
    alone: where more are `wanted`, the first ones are the same, in the same split. There are fewer than
    wanted where the generator has no more prompts.

    Args:
        make: question and answer of a split's generator by index.
        seeds: of the generators, which the rows name.
    """
    rows: dict[str, list[Row]] = {name: [] for name in wanted}
    seen: set[str] = set()
    turn = stale = 0
    most = BLOCK // max(ROUND.values())
    while turn < most and stale < _STALE and any(len(rows[name]) < wanted[name] for name in rows):
        before = len(seen)
        for name, count in ROUND.items():
            for index in range(turn * count, (turn + 1) * count):
                question, answer = make[name](index)
                key = " ".join(question.split())
                if key and answer.strip() and key not in seen:
                    seen.add(key)
                    rows[name].append((seeds[name], index, question, answer))
        stale = stale + 1 if len(seen) == before else 0
        turn += 1
    return {name: found[: wanted[name]] for name, found in rows.items()}


class _RefusedError(Exception):
    """What cannot be made, as a table that `gym.py` turns into a sentence."""

    def __init__(self, **said: Any) -> None:
        super().__init__(said)
        self.said = said


def _config(known: Any, name: str, parameters: dict[str, str]) -> dict[str, Any]:
    """The parameters as values of a generator's configuration."""
    if name not in known:
        raise _RefusedError(unknown=name, names=sorted(known))
    fields = {f.name: f.type for f in dataclasses.fields(known[name][1]) if f.name not in ("seed", "size")}
    readers: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _truth}
    kinds = {}
    for n, kind in fields.items():
        text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
        kinds[n] = "int" if "Optional[int]" in str(kind) else text
    settable = sorted(n for n, kind in kinds.items() if kind in readers)
    found = {}
    for key, text in parameters.items():
        if key not in settable:
            raise _RefusedError(parameter=key, names=settable, there=key in fields)
        try:
            found[key] = readers[kinds[key]](text)
        except ValueError as error:
            raise _RefusedError(parameter=key, value=text, kind=kinds[key]) from error
    return found


def _truth(text: str) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _generators(name: str, parameters: dict[str, str], seeds: dict[str, int]) -> dict[str, Any]:
    from reasoning_gym.factory import DATASETS, create_dataset

    values = _config(DATASETS, name, parameters)
    try:
        return {split: create_dataset(name, seed=s, size=BLOCK, **values) for split, s in seeds.items()}
    # Generators check their parameters by assertions, and in whatever way else they like.
    except Exception as error:
        raise _RefusedError(configuration=_words(error)) from error


def _maker(data: Any) -> Callable[[int], tuple[str, str]]:
    def make(index: int) -> tuple[str, str]:
        try:
            row = data[index]
            question, answer = str(row["question"]), row["answer"]
        except Exception as error:
            raise _RefusedError(row=index, why=_words(error)) from error
        if answer is None:
            raise _RefusedError(
                row=index, why="it has no answer, as many are right and only a verifier tells"
            )
        answer = str(answer)
        if max(len(question), len(answer)) > MOST_LETTERS:
            raise _RefusedError(row=index, why=f"a text of it is longer than {MOST_LETTERS:,} letters")
        return question, answer

    return make


def _words(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).split("\n")[0]
    return first[:300]


def _bound_memory() -> None:
    """Bound what this process takes, as far as the system does that."""
    try:
        import resource
    except ImportError:  # Windows; the time is bounded there too
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MOST_MEMORY if hard == resource.RLIM_INFINITY else min(_MOST_MEMORY, hard)
    # macOS refuses any limit below what a process has mapped, which is far more than it takes. Its time is
    # bounded all the same, and a task that cannot be made at all helps nobody.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main() -> None:
    """Read what is wanted from standard input and write the rows, or why there are none, to standard
    output."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    asked = json.loads(sys.stdin.read())
    _bound_memory()
    try:
        seeds = starts(asked["seed"])
        found = _generators(asked["name"], asked["parameters"], seeds)
        makers = {name: _maker(data) for name, data in found.items()}
        answer: dict[str, Any] = {"rows": draw(makers, seeds, asked["wanted"])}
    except _RefusedError as refused:
        answer = {"refused": refused.said}
    out.write(json.dumps(answer))


if __name__ == "__main__":
    main()
