"""Searches with everything fixed, compared with what they did when they were recorded.

    python experiments/structure/run.py                  # all of them, compared with the recording
    python experiments/structure/run.py first smallest   # these alone
    python experiments/structure/run.py --record         # write down what they do now
    python experiments/structure/run.py --tables         # what is recorded

A change of structure leaves what a search does as it was: which recipes it proposes, in which order, what
they score, which runs follow and which recipe wins. `results/searches.json` has all of that for four
searches. Each runs with an empty cache of its own, but for models and data sets, in a temporary folder or
in `--keep`. Scores are compared to the last bit. So a recording holds for one processor and one version of
torch: record before a change, and compare after it, on the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import cache_at, note, one_thread, read_json, write_json
from lib.searches import finished_search

from autopeft.assets.cache import cache_dir
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord

__all__ = ["SEARCHES", "differences", "record_of", "tables"]

RESULTS = Path(__file__).parent / "results" / "searches.json"
_FIXED: dict[str, Any] = {
    "workers": 1,
    "seed": 0,
    "trials": 8,
    "sampler": "tpe",
    "precision": "fp32",
    "pooling": "own",
}
SEARCHES: dict[str, dict[str, Any]] = {
    "first": {"budget": "0.5%", "task": "sst2"},
    "tokens": {"budget": "0.5%", "task": "swapped-words", "steps": 40, "train_rows": 800, "test_rows": 400},
    "language-model": {
        "budget": "0.3%",
        "task": "gym:chain_sum",
        "model": "smollm2-135m",
        "steps": 12,
        "train_rows": 200,
        "select_rows": 40,
        "test_rows": 40,
    },
    "smallest": {"budget": "0.5%", "task": "trec", "goal": "smallest"},
}
"""By name, what each search is told besides what all are told."""


def record_of(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished search did: its trials, its runs after these, and its winner.

    Args:
        result: what stands in its `result.json`.
    """
    run = RunFolder(folder)
    return {
        "trials": [_trial(record) for record in run.trials().records],
        # With stages of equal right their order is of no matter.
        "finals": sorted(map(_final, run.finals().records), key=lambda f: (f["kind"], f["label"], f["seed"])),
        "winner": {
            "recipe": result["recipe"],
            "select": result["select"],
            "test": result["test"],
            "above": {c["baseline"]: c["difference"] for c in result["comparisons"]},
        },
    }


def _trial(record: TrialRecord) -> dict[str, Any]:
    return {
        "number": record.number,
        "values": record.values,
        "recipe": record.recipe,
        "state": record.state,
        "steps": record.steps,
        "rungs": record.rungs,
        "score": record.score,
        "deployed": record.deployed,
    }


def _final(record: TrialRecord) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "label": record.label,
        "hash": record.hash,
        "seed": record.seed,
        "steps": record.steps,
        "scores": record.scores,
    }


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Each place in which two records differ, with what stands there in both."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{at}[{index}]")
    elif old != new:
        shown = (
            f"{len(side)} entries" if isinstance(side, list) else json.dumps(side)[:200]
            for side in (old, new)
        )
        yield f"{at}: {' was, now '.join(shown)}"


def _run(name: str, keep: Path) -> dict[str, Any]:
    note(f"{name}: {SEARCHES[name]}")
    cache = keep / f"{name}-cache"
    cache.mkdir(parents=True, exist_ok=True)
    fetched = cache_dir() / "assets"
    if fetched.is_dir() and not (cache / "assets").exists():
        (cache / "assets").symlink_to(fetched)
    with cache_at(cache):
        result = finished_search(keep / name, **_FIXED, **SEARCHES[name])
    found: dict[str, Any] = json.loads(json.dumps(record_of(keep / name, result)))
    return found


def tables(recorded: Mapping[str, Any]) -> str:
    """How many trials and runs each recorded search has, and what won, as Markdown."""
    lines = ["| search | trials | runs after them | winner | test |", "|---|---|---|---|---|"]
    for name, found in recorded["searches"].items():
        winner, runs = found["winner"], len(found["finals"])
        test = statistics.fmean(winner["test"])
        lines.append(
            f"| `{name}` | {len(found['trials'])} | {runs} | `{winner['recipe']['name']}` | {test:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SEARCH", help=f"some of {', '.join(SEARCHES)}")
    parser.add_argument("--record", action="store_true", help="write down what the searches do now")
    parser.add_argument("--tables", action="store_true", help="say what is recorded")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the run folders, and go on in them")
    given = parser.parse_args()
    if unknown := set(given.names) - set(SEARCHES):
        parser.error(f"there is no search {', '.join(sorted(unknown))}; there are {', '.join(SEARCHES)}")
    if given.tables:
        print(tables(read_json(RESULTS)))
        return
    one_thread()
    with tempfile.TemporaryDirectory() as temporary:
        keep = given.keep or Path(temporary)
        found = {name: _run(name, keep) for name in given.names or SEARCHES}
    recorded = read_json(RESULTS) if RESULTS.exists() else {"searches": {}}
    if given.record:
        write_json(RESULTS, {"searches": {**recorded["searches"], **found}})
        return
    wrong = [
        f"{name} {line}" for name in found for line in differences(recorded["searches"][name], found[name])
    ]
    print("\n".join(wrong) or f"As recorded: {', '.join(found)}.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
