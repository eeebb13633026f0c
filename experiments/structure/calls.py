"""On how many functions and files a search of two trials, its report and its export lie.

    python experiments/structure/calls.py           # a small backbone and data made for it; a minute
    python experiments/structure/calls.py --names   # also the functions, by file, in the order of first calls

Everything runs in this process (`workers=0`), so that each call is seen. What counts are functions of the
package, `methods/` included, that are called at least once: each `def` once, without lambdas, comprehensions
and the bodies of modules and classes. Those before the first trial are the ones that were called when
`run_trial` is entered for the first time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import inspect
import io
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # for `support`

from lib.measuring import cache_at, one_thread
from support.saved_model import BAD, GOOD, NEUTRAL, save_backbone

import autopeft

__all__ = ["Way", "traced"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = (str(Path(autopeft.__file__).parent), str(ROOT / "methods"))


class Way:
    """The functions that are called while it watches, in order."""

    def __init__(self) -> None:
        self.functions: dict[CodeType, None] = {}
        self.before_first_trial: int | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self.functions or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name.startswith("<") or not code.co_flags & inspect.CO_NEWLOCALS:
            return
        if not code.co_flags & inspect.CO_OPTIMIZED:  # the body of a class
            return
        if code.co_name == "run_trial" and self.before_first_trial is None:
            self.before_first_trial = len(self.functions)
        self.functions[code] = None

    @property
    def files(self) -> dict[str, list[str]]:
        """Names of the functions by file."""
        found: dict[str, list[str]] = {}
        for code in self.functions:
            found.setdefault(code.co_filename, []).append(
                code.co_qualname if sys.version_info >= (3, 11) else code.co_name
            )
        return found


@contextlib.contextmanager
def traced() -> Iterator[Way]:
    """Watch every call in all threads that are begun meanwhile."""
    way = Way()
    threading.setprofile(way)
    sys.setprofile(way)
    try:
        yield way
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _work(folder: Path) -> Callable[[], None]:
    """A search of two trials by the command line, then its report and its export."""
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(200):
            word = (GOOD if i % 2 else BAD)[i % 3]
            writer.writerow([f"{NEUTRAL[i % 5]} {'the ' * (i % 9)}{word} {'film ' * (i % 11)}", i % 2])
    model = save_backbone(folder / "model")
    run = str(folder / "run")
    search = (
        *("search", "--budget", "20%", "--task", str(folder / "data.csv"), "--model", str(model)),
        *("--trials", "2", "--steps", "8", "--max-length", "32", "--workers", "0", "--seed", "0"),
        *("--sampler", "tpe", "--precision", "fp32", "--pooling", "own", "--out", run),
    )

    def work() -> None:
        from autopeft.cli import main

        for words in (search, ("report", run), ("export", run, "--out", str(folder / "exported"))):
            sys.argv = ["autopeft", *words]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                main()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--names", action="store_true", help="print the functions by file as well")
    given = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with cache_at(folder / "cache"):
            work = _work(folder)
            with traced() as way:
                work()
        assert (folder / "exported").is_dir()
    if given.names:
        for file, names in way.files.items():
            print(f"{Path(file).relative_to(ROOT)}: {', '.join(names)}")
    print(
        f"{len(way.functions):,} functions in {len(way.files)} files, "
        f"{way.before_first_trial:,} of them before the first trial"
    )


if __name__ == "__main__":
    main()
