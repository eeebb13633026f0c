"""CPU seconds of a command in two installations of AutoPEFT, taken in turns, all processes together.

    python experiments/versions/run.py OLD NEW                   # the two interpreters, ten pairs
    python experiments/versions/run.py OLD NEW --pairs 20 -- search --task trec --trials 4
    python experiments/versions/run.py --tables                  # what is recorded

OLD and NEW are interpreters that have one version each (`.venv/bin/python`). In each pair both run the
command in an empty folder, with one cache that is filled before; which is first changes from pair to pair.
With `--cold` each has an empty cache of its own, but for the models and data sets that are fetched.
What counts is the CPU time of the command and of everything that it starts, Ray included: all processes with
a mark in their environment, looked at ten times a second. (The kernel's sum over children lacks what Ray's
workers take.) Pairs are kept in `results/pairs.jsonl`, so that an interrupted run goes on; the bound is
one-sided, from Student's t of the logarithms.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

import psutil
from lib.intervals import one_sided
from lib.measuring import note
from lib.storage import append_row, read_rows

from autopeft.assets.cache import cache_dir

__all__ = ["cpu_of", "pairs", "upper", "verdict"]

RESULTS = Path(__file__).parent / "results" / "pairs.jsonl"
COMMAND = (
    *("search", "--budget", "0.5%", "--task", "sst2", "--seed", "0", "--workers", "1"),
    *("--trials", "8", "--steps", "20", "--baselines", "none"),
)
_MARK, _EVERY = "AUTOPEFT_MEASURED", 0.1


def cpu_of(command: Sequence[str], folder: Path, *, cold: bool = False) -> float:
    """CPU seconds of a command and of all that it starts, of each until it was last seen.

    Args:
        cold: whether nothing is cached for it but what is fetched, models and data sets.

    Raises:
        RuntimeError: it fails; the message has what it printed last.
    """
    mark, out, seen = uuid.uuid4().hex, folder / "out.txt", dict[tuple[int, float], float]()
    marked = {**os.environ, _MARK: mark}
    if cold:
        marked["AUTOPEFT_CACHE"] = str(_cold_cache(folder))
    with out.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=marked
        )
    while process.poll() is None or _look(mark, seen):
        _look(mark, seen)
        time.sleep(_EVERY)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {out.read_text()[-2000:]}")
    return sum(seen.values())


def _cold_cache(folder: Path) -> Path:
    """A cache that holds what is fetched alone, as links."""
    cache = folder / "cache"
    cache.mkdir()
    if (fetched := cache_dir() / "assets").is_dir():
        (cache / "assets").symlink_to(fetched)
    return cache


def _look(mark: str, seen: dict[tuple[int, float], float]) -> int:
    """Take down what every process with the mark has taken so far; how many there are."""
    count = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) != mark or process.status() == psutil.STATUS_ZOMBIE:
                continue
            took = process.cpu_times()
            seen[process.pid, process.create_time()] = took.user + took.system
            count += 1
        except psutil.Error:
            continue
    return count


def pairs(
    pythons: Sequence[str],
    command: Sequence[str],
    count: int,
    rows: Path = RESULTS,
    keep: Path | None = None,
    cold: bool = False,
) -> list[list[float]]:
    """CPU seconds of both sides, pair by pair; those that were recorded before are not measured again.

    Args:
        keep: a folder for what the commands print and write; without it that is removed.
        cold: see `cpu_of`.
    """
    key: dict[str, Any] = {"command": list(command), "versions": [_version(python) for python in pythons]}
    if cold:
        key["cold"] = True
    found = [row["seconds"] for row in read_rows(rows) if row["key"] == key]
    for number in range(len(found), count):
        seconds = [0.0, 0.0]
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            kept = nullcontext(tempfile.mkdtemp(prefix=f"{number}-{side}-", dir=keep)) if keep else None
            with kept or tempfile.TemporaryDirectory() as folder:
                seconds[side] = cpu_of([pythons[side], "-m", "autopeft", *command], Path(folder), cold=cold)
        append_row(rows, {"key": key, "seconds": seconds})
        found.append(seconds)
        note(
            f"pair {number + 1}: {seconds[0]:.1f} s, {seconds[1]:.1f} s, ratio {seconds[1] / seconds[0]:.3f}"
        )
    return found[:count]


def _version(python: str) -> str:
    """The commit of an editable installation, else the version of the package."""
    ask = "import autopeft, pathlib; print(autopeft.__version__, pathlib.Path(autopeft.__file__).parents[1])"
    told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True, cwd="/")
    version, _, place = told.stdout.strip().partition(" ")
    git = subprocess.run(["git", "-C", place, "rev-parse", "HEAD"], capture_output=True, text=True)
    return git.stdout.strip() or version


def upper(ratios: Sequence[float]) -> tuple[float, float]:
    """Geometric mean of ratios, and the upper bound of its one-sided 95 % interval."""
    mean, half = one_sided([math.log(ratio) for ratio in ratios])
    return math.exp(mean), math.exp(mean + half)


def verdict(seconds: Sequence[Sequence[float]]) -> str:
    """A sentence of what pairs say."""
    ratios = [new / old for old, new in seconds]
    if len(ratios) == 1:
        return f"1 pair, new/old: {ratios[0]:.3f}."
    mean, bound = upper(ratios)
    return (
        f"{len(ratios)} pairs, new/old: geometric mean {mean:.3f}, upper 95 % bound {bound:.3f}, "
        f"{min(ratios):.3f} to {max(ratios):.3f}."
    )


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The verdict on each command in each two versions, as Markdown."""
    found: dict[str, list[Sequence[float]]] = {}
    for row in rows:
        old, new = (version[:8] for version in row["key"]["versions"])
        cold = ", cold" if row["key"].get("cold") else ""
        name = f"`{' '.join(row['key']['command'])}`, {old} against {new}{cold}"
        found.setdefault(name, []).append(row["seconds"])
    return "\n".join(f"- {name}: {verdict(seconds)}" for name, seconds in found.items())


def main(words: Sequence[str]) -> None:
    at = words.index("--") if "--" in words else len(words)
    own, command = words[:at], words[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="of the old and of the new version")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--tables", action="store_true", help="say what the recorded pairs say")
    parser.add_argument("--cold", action="store_true", help="each with an empty cache")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what the commands print and write")
    given = parser.parse_args(own)
    if given.tables:
        print(tables(read_rows(RESULTS)))
        return
    if len(given.pythons) != 2:
        parser.error("two interpreters are needed, of the old and of the new version")
    command = command or list(COMMAND)
    # A link is not followed: an environment is known by where its link lies.
    given.pythons = [str(Path(python).absolute()) for python in given.pythons]
    for python in given.pythons if not given.cold else ():  # fills the caches
        with tempfile.TemporaryDirectory() as folder:
            cpu_of([python, "-m", "autopeft", *command], Path(folder))
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    print(verdict(pairs(given.pythons, command, given.pairs, keep=given.keep, cold=given.cold)))


if __name__ == "__main__":
    main(sys.argv[1:])
