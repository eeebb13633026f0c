"""Names on the command line: of recipes, spaces, methods, models, tasks, runs, files and folders."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import typer
from transformers import BertConfig

from autopeft.errors import AutoPEFTError
from autopeft.export.api import predict
from autopeft.recipe import Recipe, recipe_names
from autopeft.search.optimization.warm_start import points_from
from autopeft.search.space.space import Space
from autopeft.tasks.files import read_file, read_lines

from .. import mutate
from ..products import command
from ..surface import Call, First
from .recipe import spec

SHARE = 0.5

_REFUSED: Any = typer.BadParameter.__mro__[2]  # of the command line itself, whatever copy of click typer has
_MODEL = ("--model", "bert")
_DRY = ("--task", "data.csv", "--budget", "1%", "--dry-run", *_MODEL)
_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("show", "NAME", *_MODEL),
    ("show", "mam", "--model", "NAME"),
    ("count", "NAME", *_MODEL, "--json"),
    ("count", "mam", *_MODEL, "--budget", "NAME"),
    ("methods", "NAME"),
    ("spaces", "NAME", *_MODEL),
    ("runs", "NAME"),
    ("runs", "--runs", "NAME"),
    ("report", "NAME"),
    ("evaluate", "NAME"),
    ("predict", "NAME", "--text", "a"),
    ("predict", "none", "--file", "NAME"),
    ("export", "NAME", "--out", "there"),
    ("debug", "NAME", "1"),
    ("train", "--recipe", "NAME", "--task", "data.csv", *_MODEL),
    ("train", "--recipe", "mam", "--task", "NAME", *_MODEL),
    ("train", "--recipe", "mam", "--task", "data.csv", "--model", "NAME"),
    ("search", "--space", "NAME", *_DRY),
    ("search", "--space", "lora", "--task", "data.csv", "--budget", "NAME", "--dry-run", *_MODEL),
    ("search", "--space", "lora", "--task", "NAME", "--budget", "1%", "--dry-run", *_MODEL),
    ("search", "--resume", "NAME"),
    ("search", "--from", "NAME", "--space", "lora", *_DRY),
    ("NAME",),
    ("show", *_MODEL, "--NAME", "mam"),
)  # fmt: skip


@cache
def _config() -> str:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return str(BertConfig(vocab_size=20, **small).to_json_string(use_diff=False))


def use(*words: str) -> None:
    """Run a command; what the command line itself refuses is read well enough."""
    with suppress(_REFUSED, typer.Exit):
        command(*words)


def _prepare(folder: Path) -> None:
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(_config())
    (folder / "data.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))


def _near(random: Random, name: str) -> str:
    """A name like one that there is, or nothing like it."""
    if random.random() < 0.5:
        # What people name themselves may lie anywhere.
        return mutate.word(random).replace("outside", "elsewhere")
    return mutate.text(random, name, most=2).decode("utf-8", "surrogateescape")


def hostile(random: Random, folder: Path) -> Call:
    _prepare(folder)
    words = random.choice(_COMMANDS)
    name = _near(random, random.choice((*recipe_names(), "lora", "latest", "bert", "data.csv", "10%")))
    chosen = tuple(word.replace("NAME", name) for word in words)
    (folder / "words.json").write_text(json.dumps(chosen))
    return lambda: use(*chosen)


_HARD = {
    "longer than a folder takes": "x" * 300,
    "of 100,000 letters": "x" * 100_000,
    "of a home that is nobody's": "~nosuchuser/x",
    "with a null character": "a\0b",
    "of half a letter": "\udc80x",
    "of the zero device": "/dev/zero",
    "of the home folder": "~/",
    "of a device's link": "/dev/stdin",
    "of the kernel's memory": "/proc/self/mem",
}


def _all(name: str) -> First:
    """Every command with one name."""

    def write(folder: Path) -> Call:
        _prepare(folder)

        def call() -> None:
            for words in _COMMANDS:
                if words[0] != "NAME":
                    _tried(lambda words=words: use(*(word.replace("NAME", name) for word in words)))
            for read in (read_file, read_lines):
                _tried(lambda read=read: read(Path(name)))
            _tried(lambda: predict(name, ["a"]))
            _tried(lambda: Recipe.load(name))
            _tried(lambda: points_from([name], Space.named("lora").bind(spec())))

        return call

    return write


def _tried(call: Any) -> None:
    with suppress(AutoPEFTError):
        call()


FIRST: dict[str, First] = {f"a name {what}": _all(name) for what, name in _HARD.items()}
