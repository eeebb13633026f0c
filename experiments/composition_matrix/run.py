"""Every pair of methods on tiny models: works, or is refused with a sentence.

    python experiments/composition_matrix/run.py            # tries what is not recorded; writes results/
    python experiments/composition_matrix/run.py --fresh    # tries all pairs anew
    python experiments/composition_matrix/run.py --tables

It ends with 1 where a pair neither works nor is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.storage import Balance, write_whole
from matrix import Outcome, Pair, everything, outcome_of
from rich.progress import track
from tiny import MODELS

from autopeft.method import method_names

__all__ = ["main", "table"]

RESULTS = Path(__file__).parent / "results"
Reasons = dict[str, int]


# Tables
# ---------------------------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a table for each model, and the sentences that its numbers stand for."""
    reasons: Reasons = {}
    lines: list[str] = []
    for model, tiny in MODELS.items():
        own = {(o.first, o.second): o for o in outcomes if o.model == model}
        if not own:
            continue
        lines += [f"## {model}", "", *_counted(list(own.values())), ""]
        make = _matrix if tiny.every_pair else _list
        lines += [*make(own, reasons), ""]
    lines += ["## Why", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _counted(outcomes: Sequence[Outcome]) -> list[str]:
    found = []
    for what, paired in (("methods alone", False), ("pairs", True)):
        counts = Counter(o.outcome for o in outcomes if (o.second is not None) == paired)
        told = f"{counts.total():,} {what}: {counts['works']:,} work (·), {counts['refused']:,} are refused"
        found.append(told + (f", **{counts['broken']:,} are broken**." if counts["broken"] else "."))
    return ["  \n".join(found)]


Own = dict[tuple[str, str | None], Outcome]


def _matrix(own: Own, reasons: Reasons) -> list[str]:
    """Each method with each, and alone."""
    names = [n for n in method_names() if any(n in pair for pair in own)]
    lines = ["| | alone | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for first in names:
        pairs = [own.get((first, second)) or own.get((second, first)) for second in names]
        cells = [_cell(found, reasons) for found in (own.get((first, None)), *pairs)]
        lines.append(f"| {first} | " + " | ".join(cells) + " |")
    return lines


def _list(own: Own, reasons: Reasons) -> list[str]:
    """Each method alone, and the partners that it was tried with."""
    lines = ["| | alone | with |", "|---|---|---|"]
    for name in (n for n in method_names() if any(n in pair for pair in own)):
        partners = [(second, o) for (first, second), o in own.items() if first == name and second is not None]
        tried = ", ".join(f"{second} {_cell(o, reasons)}" for second, o in partners)
        lines.append(f"| {name} | {_cell(own.get((name, None)), reasons)} | {tried} |")
    return lines


def _cell(outcome: Outcome | None, reasons: Reasons) -> str:
    if outcome is None:
        return ""
    if outcome.outcome == "works":
        return "·"
    number = reasons.setdefault(outcome.reason.replace("\n", " "), len(reasons) + 1)
    return str(number) if outcome.outcome == "refused" else f"**broken {number}**"


# Running
# ---------------------------------------------------------------------------------------------------------


def recorded() -> list[Outcome]:
    """The outcomes of the last run that came to its end, none before the first."""
    path = RESULTS / "outcomes.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return [Outcome(**outcome) for outcome in found]


def run(pairs: Sequence[Pair], *, fresh: bool = False) -> list[Outcome]:
    """The outcome of each pair: as it was recorded or as an interrupted run found it, else tried now. The
    file of an interrupted run is gone once all are there.

    Args:
        fresh: try all.
    """
    known = {} if fresh else {_key(outcome.pair): outcome for outcome in recorded()}
    balance = Balance(RESULTS / "unfinished.jsonl", fresh=fresh)
    for pair in track([pair for pair in pairs if _key(pair) not in known], "pairs"):
        key = _key(pair)
        row = balance[key] if key in balance else balance.add(key, outcome_of(pair).to_dict())
        known[key] = Outcome(**{k: v for k, v in row.items() if k != "key"})
    found = [known[_key(pair)] for pair in pairs]
    text = json.dumps([o.to_dict() for o in found], indent=1)
    write_whole(RESULTS / "outcomes.json", text + "\n")
    write_whole(RESULTS / "table.md", table(found))
    balance.path.unlink(missing_ok=True)
    return found


def _key(pair: Pair) -> str:
    return "/".join((pair.model, *pair.methods))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what was recorded, train nothing")
    parser.add_argument(
        "--fresh", action="store_true", help="try all pairs anew, not those alone that are not recorded"
    )
    options = parser.parse_args()
    if options.tables:
        print(table(recorded()), end="")
        return
    torch.set_num_threads(1)
    outcomes = run(everything(), fresh=options.fresh)
    broken = [o for o in outcomes if o.outcome == "broken"]
    for o in broken:
        print(f"{o.model}: {' with '.join(o.pair.methods)}: {o.reason}")
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(o.outcome for o in outcomes).items())
    print(f"{len(outcomes)} outcomes: {counts}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
