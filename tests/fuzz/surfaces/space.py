"""Search spaces in files: variables, choices, ranges, layer sets, and the recipes drawn from them."""

from __future__ import annotations

import random as randoms
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from autopeft.counting import Budget
from autopeft.errors import RecipeError
from autopeft.search.space.candidate import candidate
from autopeft.search.space.space import Space, space_names

from .. import mutate
from ..surface import Call, First
from .recipe import spec

_OWN = """
autopeft: 2
name: own
inputs: {one: {folder: x, sha256: 0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9}}
vars:
  size: {choice: [2, hidden/4, 8]}
  start: {int: [0, last]}
  on: {each_layer: {choice: [true, false]}}
  kind: {choice: [q, v]}
layers:
  - at: {of: all, from: $start, switch: $on}
    attach:
      - {choice: [{lora: {rank: $size, sites: [$kind]}}, {dora: {rank: {choice: [0, 4]}}}, null]}
      - {gate: [{serial_adapter: {bottleneck: {int: [1, hidden/2], log: true}}}, {optional: ia3}]}
  - at: {choice: [all, last 1, [0]]}
    each_layer:
      - {optional: {parallel_adapter: {bottleneck: {choice: [1, 2, 4]}}}}
      - {route: {children: [{lora: {rank: {choice: [1, 2]}}}], copies: {choice: [1, 2]}}}
  - attach:
      - {ia3: {}, from: {choice: [null, one, one.small]}}
      - {choice: [{bitfit: {}, from: one, frozen: {choice: [true, false]}}, null]}
model:
  - {prompt_tuning: {length: {choice: [0, 4]}}}
training:
  learning_rate: {float: [1.0e-4, 1.0e-1], log: true}
  groups: {lora: {learning_rate: {float: [0.001, 0.1]}}}
"""


@cache
def _valid() -> tuple[str, ...]:
    built_in = files("autopeft.search_spaces")
    return (
        _OWN,
        _OWN,
        *(built_in.joinpath(f"{name}.yaml").read_text(encoding="utf-8") for name in space_names()),
    )


def _wrapped(random: Random, value: Any) -> Any:
    return random.choice(
        (
            {"choice": [value, None]},
            {"optional": value},
            {"gate": [value]},
            {"choice": [{"choice": [value, 2]}, 1]},
            {"route": {"children": [value], "copies": 64}},
        )
    )


def use(space: Space) -> None:
    """What a search does with a space before it trains."""
    bound = space.bind(spec())
    bound.cardinality()
    random = randoms.Random(0)
    for values in (bound.middle(), *(bound.sample(random) for _ in range(3))):
        try:
            candidate(bound, values, Budget.parse("50%"))
        except RecipeError:
            continue


def hostile(random: Random, folder: Path) -> Call:
    valid = random.choice(_valid())
    path = folder / "space.yaml"
    if random.randrange(2):
        path.write_bytes(mutate.written(random, mutate.tree(random, mutate.of_yaml(valid), wrap=_wrapped)))
    else:
        path.write_bytes(
            mutate.text(
                random, valid, tokens=("$size", "$start", "hidden/0", "hidden/3", "last", "{int: [0, 9]}")
            )
        )
    return lambda: use(Space.load(path))


def _of(text: str) -> First:
    def write(folder: Path) -> Call:
        (folder / "space.yaml").write_bytes(mutate.bytes_of(text))
        return lambda: use(Space.load("space.yaml"))

    return write


def _doubling(variables: int, body: str) -> str:
    """Variables that each use the last one twice."""
    lines = ["vars:", "  v0: {choice: [lora, ia3]}"]
    lines += [f"  v{i}: {{choice: [{body.format(f'$v{i - 1}')}, null]}}" for i in range(1, variables)]
    return "\n".join([*lines, f"layers: [{{attach: [$v{variables - 1}]}}]"])


FIRST: dict[str, First] = {
    "26 variables that double": _of(_doubling(26, "{{sum: [{0}, {0}]}}")),
    "26 variables that double in options": _of(_doubling(26, "{{gate: [{0}]}}, {{sum: [{0}, ia3]}}")),
    "12 variables that double": _of(_doubling(12, "{{sum: [{0}, {0}]}}")),
    "numbers in variables that double": _of(
        "vars:\n  v0: {choice: [1, 2]}\n"
        + "\n".join(f"  v{i}: {{choice: [$v{i - 1}, {{choice: [$v{i - 1}, 3]}}]}}" for i in range(1, 30))
        + "\nlayers: [{attach: [{lora: {rank: $v29}}]}]"
    ),
    "a variable in itself": _of("vars: {a: {choice: [$a, lora]}}\nlayers: [{attach: [$a]}]"),
    "variables in a ring": _of("vars: {a: {choice: [$b]}, b: {choice: [$a]}}\nlayers: [{attach: [$a]}]"),
    "four nested routes": _of(
        "layers: [{attach: [" + "{route: {copies: 64, children: [" * 4 + "lora" + "]}}" * 4 + "]}]"
    ),
    "9,000 entries": _of("layers: [{attach: [" + ", ".join(["lora"] * 9000) + "]}]"),
    "1,000 choices of 5": _of(
        "layers: [{attach: [" + ", ".join(["{lora: {rank: {choice: [1, 2, 3, 4, 5]}}}"] * 1000) + "]}]"
    ),
    "a gate of 51 sizes": _of(
        "layers: [{attach: [{gate: ["
        + ", ".join(["{serial_adapter: {bottleneck: {int: [1, hidden/2], log: true}}}"] * 51)
        + "]}]}]"
    ),
    "choices in choices": _of("layers: [{attach: [" + "{choice: [lora, " * 17 + "ia3" + "]}" * 17 + "]}]"),
    "15,000 misspelt methods": _of("layers: [{attach: [" + ", ".join(["lorra"] * 15000) + "]}]"),
    "a range without end": _of("layers: [{attach: [{lora: {rank: {int: [1, .inf]}}}]}]"),
    "a range of 300 digits": _of("layers: [{attach: [{lora: {rank: {int: [1, " + "9" * 300 + "]}}}]}]"),
    "a name that is code": _of("name: \"__import__('os')\"\nlayers: [{attach: [fuzz_canary:run]}]"),
    "a name longer than a folder takes": lambda folder: lambda: use(Space.load("x" * 300)),
    "a path longer than a folder takes": lambda folder: lambda: use(Space.load("x" * 300 + ".yaml")),
    "a home that is nobody's": lambda folder: lambda: use(Space.load("~nosuchuser/x.yaml")),
    "a null byte": lambda folder: lambda: use(Space.load("a\0b")),
}
