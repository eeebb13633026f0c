"""A user's own data in a folder in the hub's layout: names of files, README, links, formats."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from autopeft.tasks import load_task

from .. import mutate
from ..canary import PICKLE
from ..surface import Call, First
from .data_file import hostile_file, rows, use, written

SHARE = 0.5

_NAMES = (
    "train",
    "validation",
    "test",
    "dev",
    "data/train-00000-of-00001",
    "train/part",
    "test/part",
    "other",
)
_SUFFIXES = (".csv", ".jsonl", ".parquet", ".json", ".tsv")
_README: dict[str, Any] = {
    "license": "mit",
    "configs": [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train*"},
                {"split": "test", "path": ["test/*", "test.*"]},
            ],
        }
    ],
    "dataset_info": {
        "features": [
            {"name": "text", "dtype": "string"},
            {"name": "label", "dtype": {"class_label": {"names": {"0": "no", "1": "yes"}}}},
        ]
    },
}
_PATHS = (
    *("../outside/secret.csv", "../outside/*", "data/../../outside/secret.csv", "/etc/passwd", "~/x.csv"),
    *("http://127.0.0.1:9/x.csv", "hf://datasets/a/b/x.csv", "zip://x.csv::https://example.org/x.zip", "**"),
    *("*" * 300, "[" * 200, "a" * 500, "a/" * 200, "", ".", "train.csv", "./train.csv", "link/*", "**/**/**"),
    *("{train,test}.csv", "\ud800"),
)  # fmt: skip


def hostile(random: Random, folder: Path) -> Call:
    data = folder / "data"
    data.mkdir()
    suffix = random.choice(_SUFFIXES)
    for name in dict.fromkeys(random.choice(_NAMES) for _ in range(random.randint(1, 4))):
        path = data / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if random.random() < 0.7:
            path.write_bytes(written(rows(Random(1), 40), suffix))
        else:
            hostile_file(random, path)
    if random.random() < 0.7:
        _write_readme(random, data)
    if random.random() < 0.3:
        _add(random, data)
    return lambda: use(load_task("data"))


def _write_readme(random: Random, data: Path) -> None:
    readme = mutate.tree(random, _README) if random.random() < 0.7 else _README
    front = mutate.written(random, readme)
    if random.random() < 0.5 and isinstance(readme, dict):
        front = mutate.bytes_of(f"configs: [{{config_name: a, data_files: {random.choice(_PATHS)!r}}}]\n")
    text = b"---\n" + front + b"\n---\n# Data\n"
    if random.random() < 0.2:
        text = mutate.text(random, text.decode("utf-8", "replace"))
    (data / random.choice(("README.md", "README.md", ".huggingface.yaml"))).write_bytes(text)


def _add(random: Random, data: Path) -> None:
    """Something that does not belong into a folder of data."""
    kind = random.randrange(7)
    if kind == 0:
        (data / "train_link.csv").symlink_to("../../outside/secret.csv")
    elif kind == 1:
        (data / "link").symlink_to("../../outside")
    elif kind == 2:
        (data / "again").symlink_to(".")
    elif kind == 3:
        os.mkfifo(data / "train_pipe.csv")
    elif kind == 4:
        (data / random.choice(("train.pkl", "train.pt", "train.bin"))).write_bytes(PICKLE)
    elif kind == 5:
        (data / "data.py").write_text("open('EXECUTED', 'w')")
    else:
        (data / "dataset_infos.json").write_bytes(
            mutate.written(random, mutate.tree(random, {"default": _README}))
        )


def _with(readme: str | None = None, also: Callable[[Path], object] | None = None) -> First:
    def write(folder: Path) -> Call:
        data = folder / "data"
        data.mkdir()
        (data / "train.csv").write_bytes(written(rows(Random(1), 40), ".csv"))
        if readme is not None:
            (data / "README.md").write_bytes(b"---\n" + mutate.bytes_of(readme) + b"\n---\n")
        if also is not None:
            also(data)
        return lambda: use(load_task("data"))

    return write


def _at(path: str) -> First:
    return _with(f"configs: [{{config_name: default, data_files: [{{split: train, path: {path!r}}}]}}]")


def _laughs() -> str:
    lines = ["a: &a [x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join([*lines, "configs: *i"])


def _links_in_links(data: Path) -> None:
    for name in "abcdef":
        (data / name).symlink_to(".")


def _many_files(data: Path) -> None:
    for i in range(120):
        (data / f"d{i}").mkdir()
        for j in range(100):
            (data / f"d{i}" / f"{j}.txt").touch()


FIRST: dict[str, First] = {
    "a path that leaves the folder": _at("../../outside/secret.csv"),
    "a pattern that leaves the folder": _at("../../outside/*"),
    "a path from the top": _at("/etc/passwd"),
    "a path at another host": _at("https://example.org/x.csv"),
    "a path inside an archive": _at("zip://x.csv::https://example.org/x.zip"),
    "a folder that leaves the folder": _with("configs: [{config_name: a, data_dir: ../../outside}]"),
    "a link that leaves the folder": _with(
        also=lambda data: (data / "train2.csv").symlink_to("../../outside/secret.csv")
    ),
    "a linked folder outside": _with(also=lambda data: (data / "train").symlink_to("../../outside")),
    "links to the folder itself": _with(also=_links_in_links),
    "a pipe among the data": _with(also=lambda data: os.mkfifo(data / "train3.csv")),
    "a device among the data": _with(also=lambda data: (data / "train4.csv").symlink_to("/dev/zero")),
    "aliases of aliases": _with(_laughs()),
    "a tag that names code": _with("configs: !!python/object/apply:os.system ['touch EXECUTED']"),
    "brackets": _with("configs: " + "[" * 20000),
    "many stars": _at("*a" * 200 + "/" + "**/" * 100),
    "a pickle": _with(also=lambda data: (data / "train.pkl").write_bytes(PICKLE)),
    "a script": _with(also=lambda data: (data / "data.py").write_text("open('EXECUTED', 'w')")),
    "deep JSON": _with(
        also=lambda data: [(data / f"train{i}.jsonl").write_text("[" * 100000) for i in range(2)]
    ),
    "more files than a data set": _with(also=_many_files),
    "a README that is a pipe": _with(also=lambda data: os.mkfifo(data / "README.md")),
    "the home folder": lambda folder: lambda: use(load_task("~/")),
    "the top folder": lambda folder: lambda: use(load_task("/")),
}
