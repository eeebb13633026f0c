"""Folders that somebody sent, as files by name: some are changed, gone or not what they are called."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from . import mutate
from .canary import PICKLE
from .weights import safetensors

__all__ = [
    "Edit",
    "Files",
    "Move",
    "after",
    "cut",
    "edit",
    "json_bytes",
    "linked",
    "nested",
    "piped",
    "put",
    "read",
    "replace",
    "told",
    "write",
]

Files: TypeAlias = dict[str, bytes]
Edit: TypeAlias = Callable[[Files], object]  # changes what is going to be written
Move: TypeAlias = Callable[[Path], object]  # changes what is there
Tree: TypeAlias = Callable[[Random, Any], Any]

_STRUCTURED = (".json", ".jsonl", ".log", ".yaml")
_OUTSIDE = ("recipe.yaml", "secret.csv", "secret.jsonl", "")


def read(folder: Path) -> Files:
    """Every plain file below a folder, by its path there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write such files; folders are made where there are none."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def json_bytes(value: Any, *, ascii: bool = True) -> bytes:
    """A line of JSON, with halves of surrogate pairs by their numbers or, where not `ascii`, as they are."""
    try:
        return mutate.bytes_of(json.dumps(value, ensure_ascii=ascii)) + b"\n"
    except ValueError:  # more digits than Python writes
        return b'{"seed": ' + b"9" * 5000 + b"}\n"


# Drawn
# ----------------------------------------------------------------------------------------------------------


def edit(random: Random, files: Files, name: str, *, tree: Tree = mutate.tree) -> None:
    """Change one of the files, by what its name says it holds, or delete it.

    Args:
        tree: changes what a JSON file, or a line of one, holds.
    """
    valid = files[name]
    kind = random.randrange(10)
    if kind == 0:
        del files[name]
    elif name.endswith(".safetensors"):
        files[name] = safetensors(random, valid)
    elif kind == 1:
        files[name] = mutate.data(random, valid)
    elif kind == 2 or not name.endswith(_STRUCTURED):
        files[name] = mutate.text(random, valid.decode("utf-8", "replace"))
    elif name.endswith(".yaml"):
        files[name] = mutate.written(random, mutate.tree(random, mutate.of_yaml(valid.decode("utf-8"))))
    elif name.endswith(".json"):
        files[name] = json_bytes(tree(random, json.loads(valid)), ascii=random.random() < 0.7)
    else:
        files[name] = _lines(random, valid, tree)


def _lines(random: Random, valid: bytes, tree: Tree) -> bytes:
    """Lines of JSON, some of them changed, gone, said again or moved."""
    lines = valid.splitlines(keepends=True)
    for _ in range(mutate.many(random, 3)):
        at = random.randrange(len(lines)) if lines else 0
        kind = random.randrange(8)
        if not lines or kind == 0:
            lines.insert(
                at, random.choice((b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b"[" * 5000 + b"\n"))
            )
        elif kind == 1:
            del lines[at]
        elif kind == 2:
            lines.insert(at, lines[random.randrange(len(lines))])
        elif kind == 3:
            lines[at] = lines[at][: random.randrange(len(lines[at]))]
        else:
            lines[at] = json_bytes(tree(random, _loads(lines[at])))
    return b"".join(lines)


def _loads(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # it was changed before
        return {}


def replace(random: Random, path: Path, beside: str) -> None:
    """Put there something that is no plain file, or leads elsewhere, or is not what it is called.

    Args:
        path: in a folder of the case's folder. What is there goes.
        beside: a file in another folder of the case, to which a link may lead.
    """
    _remove(path)
    path.parent.mkdir(exist_ok=True)
    kind = random.randrange(6)
    if kind == 0:
        path.symlink_to(f"../../outside/{random.choice(_OUTSIDE)}")
    elif kind == 1:
        path.symlink_to(random.choice((path.name, ".", "/dev/zero", f"../{beside}", "nothing")))
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        path.write_bytes(PICKLE)
    else:
        path.write_bytes(b"")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# By hand
# ----------------------------------------------------------------------------------------------------------


def put(name: str, content: bytes) -> Edit:
    """This file with this content."""
    return lambda files: files.update({name: content})


def cut(name: str, size: int) -> Edit:
    """This file up to a byte, which is counted as slices are."""
    return lambda files: files.update({name: files[name][:size]})


def after(name: str, more: bytes) -> Edit:
    """This file with more at its end."""
    return lambda files: files.update({name: files[name] + more})


def told(name: str, change: Callable[[dict[str, Any]], Any]) -> Edit:
    """This JSON file with its object changed."""

    def change_it(files: Files) -> None:
        found = json.loads(files[name])
        change(found)
        files[name] = json_bytes(found)

    return change_it


def linked(name: str, target: str) -> Move:
    """A link in place of this file or folder."""

    def move(folder: Path) -> None:
        _remove(folder / name)
        (folder / name).symlink_to(target)

    return move


def piped(name: str) -> Move:
    """A pipe in place of this file."""

    def move(folder: Path) -> None:
        _remove(folder / name)
        os.mkfifo(folder / name)

    return move


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    """The number 1 in so many tables or lists."""
    found: Any = 1
    for _ in range(depth):
        found = wrap(found)
    return found
