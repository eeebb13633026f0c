"""`python -m tests.fuzz`: try cases of some or all surfaces, or one case again."""

from __future__ import annotations

import argparse
import faulthandler
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

# What the tests share (`support`) is imported from there, as pytest does.
sys.path.insert(0, str(Path(__file__).parents[1]))

from .harness import Bench, Finding, bench
from .surface import Case, Surface, cases, surfaces

_HANGS = 120  # seconds after which a case that no signal reaches ends the run with where it hangs


def main() -> int:
    """0 where no case is bad, 1 where some are."""
    given = _arguments()
    chosen = {name: surfaces()[name] for name in given.surfaces or surfaces()}
    with bench() as place:
        found = _again(place, given) if given.seed is not None or given.first else _all(place, given, chosen)
    return 1 if found else 0


def _again(place: Bench, given: argparse.Namespace) -> bool:
    case = Case(surfaces()[given.surfaces[0]], given.seed, given.first)
    finding = place.attempt(case, keep=True)
    for path in sorted((place.root / "case").rglob("*")):
        kind = "link to " + str(path.readlink()) if path.is_symlink() else f"{path.lstat().st_size:,} bytes"
        print(f"  {path.relative_to(place.root / 'case')}: {kind}")
    if given.show:
        print((place.root / "case" / given.show).read_bytes().decode("utf-8", errors="backslashreplace"))
    print(f"bad: {finding}\n{finding.trace}" if finding else "not bad")
    return finding is not None


def _all(place: Bench, given: argparse.Namespace, chosen: Mapping[str, Surface]) -> bool:
    todo = cases(chosen, given.cases, start=given.start)
    found = place.run(_in_time(todo), told=_tell)
    for name in chosen:
        tried, read = place.tried[name], place.returned[name]
        print(
            f"{name:20} {tried:6} cases, {read:6} read, {tried - read:6} refused, "
            f"{place.seconds[name]:6.1f} s, at most {place.most[name]} MB above idle"
        )
    total = sum(place.tried.values())
    grown = place.grown
    print(f"{total} cases, {len(found)} bad; the process holds {grown:.0f} MB more than before.")
    return bool(found) or grown > given.growth


def _in_time(todo: Iterable[Case]) -> Iterator[Case]:
    """The cases, each with an alarm of its own that ends the process."""
    for case in todo:
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        yield case
    faulthandler.cancel_dump_traceback_later()


def _tell(finding: Finding) -> None:
    print(f"bad: {finding}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE", help="default: all")
    parser.add_argument("--cases", type=int, default=300, help="random cases over all surfaces together")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--growth", type=float, default=float("inf"), help="megabytes that may stay")
    parser.add_argument("--seed", type=int, help="try this one case of a surface again and show how it ends")
    parser.add_argument("--first", help="try this one of a surface's first cases again")
    parser.add_argument("--show", metavar="FILE", help="print this file of the case")
    given = parser.parse_args()
    unknown = [name for name in given.surfaces if name not in surfaces()]
    if unknown:
        parser.error(f"there is no surface {unknown[0]!r}; there are {', '.join(surfaces())}")
    if (given.seed is not None or given.first) and len(given.surfaces) != 1:
        parser.error("one case is one of one surface")
    return given


if __name__ == "__main__":
    sys.exit(main())
