"""Drawing rows of procedural tasks: disjoint seeds and prompts, and more rows begin with fewer."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from autopeft.tasks import gym_rows
from autopeft.tasks.gym_rows import BLOCK, ROUND, Row, draw, starts

WANTED = {"test": 10, "select": 10, "train": 80}


def sums(seed: int, largest: int) -> Callable[[int], tuple[str, str]]:
    def make(index: int) -> tuple[str, str]:
        number = (seed + index) * 7919 % 104_729 % largest
        return f"{number} + 1 =", str(number + 1)

    return make


def drawn(largest: int, wanted: dict[str, int] = WANTED, seed: int = 0) -> dict[str, list[Row]]:
    seeds = starts(seed)
    return draw({name: sums(first, largest) for name, first in seeds.items()}, seeds, wanted)


def test_generator_seeds_of_splits_never_meet() -> None:
    ranges = sorted(first for seed in range(200) for first in starts(seed).values())
    assert len(set(ranges)) == 600
    assert all(b - a >= BLOCK for a, b in itertools.pairwise(ranges))
    assert ranges[-1] + BLOCK <= 1 << 32
    assert max(starts(10**30).values()) + BLOCK <= 1 << 32


def test_no_prompt_stands_twice_even_where_there_are_few() -> None:
    for largest in (12, 50, 101, 1_000):
        rows = drawn(largest)
        prompts = [row[2] for part in rows.values() for row in part]
        assert len(prompts) == len(set(prompts))
        assert all(rows.values())
        if largest < 100:
            assert len(prompts) == largest, "all there are"
    assert {name: len(part) for name, part in drawn(1_000).items()} == WANTED


def test_prompts_that_differ_in_white_space_alone_are_one() -> None:
    texts = ["a b", "a  b", " a b\n", "c", "d", "e", "f", "g", "h", "i"]
    seeds = dict.fromkeys(ROUND, 0)
    make = {name: lambda index: (texts[index % len(texts)], "yes") for name in ROUND}
    rows = draw(make, seeds, WANTED)
    assert sum(map(len, rows.values())) == 8


def test_more_rows_begin_with_fewer() -> None:
    few = drawn(150)
    many = drawn(150, {"test": 15, "select": 12, "train": 100})
    for name, part in few.items():
        assert many[name][: len(part)] == part


def test_rows_without_an_answer_are_left_out() -> None:
    make = {name: lambda index: (str(index), "" if index % 2 else "yes") for name in ROUND}
    rows = draw(make, dict.fromkeys(ROUND, 0), {"test": 2, "select": 2, "train": 8})
    assert {row[3] for part in rows.values() for row in part} == {"yes"}
    assert all(row[1] % 2 == 0 for part in rows.values() for row in part)


# What `setrlimit` raises where a system has no such limit (macOS), or lets nobody set it.
REFUSING = """
import resource, runpy, sys
def refuse(*_):
    raise {error}
resource.setrlimit = refuse
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("error", ["ValueError('current limit exceeds maximum limit')", "OSError(22, 'no')"])
def test_rows_are_made_where_memory_cannot_be_bounded(error: str) -> None:
    asked = {"name": "chain_sum", "parameters": {}, "seed": 0, "wanted": {"test": 1, "select": 1, "train": 2}}
    command = [sys.executable, "-c", REFUSING.format(error=error), str(gym_rows.__file__)]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {name: len(rows) for name, rows in json.loads(done.stdout)["rows"].items()} == asked["wanted"]
