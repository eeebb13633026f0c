"""Every pair of methods on a tiny BERT and a tiny Llama: works, or is refused with a sentence.

    python experiments/composition_matrix/run.py     # minutes on one core; writes results/
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
from matrix import BACKBONES, Outcome, all_pairs, outcome_of
from rich.progress import track

from autopeft.method import method_names

__all__ = ["main", "table"]

RESULTS = Path(__file__).parent / "results"


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a matrix for each backbone, and the sentences that its numbers stand for."""
    reasons: dict[str, int] = {}
    lines: list[str] = []
    for backbone in BACKBONES:
        own = {(o.first, o.second): o for o in outcomes if o.backbone == backbone}
        works = sum(o.outcome == "works" for o in own.values())
        refused = sum(o.outcome == "refused" for o in own.values())
        lines += [f"## {backbone}", "", f"{len(own)} pairs: {works} work (·), {refused} are refused.", ""]
        names = [n for n in method_names() if any(n in pair for pair in own)]
        lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for first in names:
            cells = [_cell(own.get((first, second)) or own.get((second, first)), reasons) for second in names]
            lines.append(f"| {first} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Why", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome | None, reasons: dict[str, int]) -> str:
    if outcome is None:
        return ""
    if outcome.outcome == "works":
        return "·"
    number = reasons.setdefault(outcome.reason.replace("\n", " "), len(reasons) + 1)
    return str(number) if outcome.outcome == "refused" else f"**broken {number}**"


def recorded() -> list[Outcome]:
    """The outcomes of the last run."""
    found = json.loads((RESULTS / "outcomes.json").read_text(encoding="utf-8"))
    return [Outcome(**outcome) for outcome in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what was recorded, train nothing")
    if parser.parse_args().tables:
        print(table(recorded()), end="")
        return
    torch.set_num_threads(1)
    outcomes = [outcome_of(pair) for pair in track(all_pairs(), "pairs")]
    text = json.dumps([o.to_dict() for o in outcomes], indent=1)
    (RESULTS / "outcomes.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / "table.md").write_text(table(outcomes), encoding="utf-8")
    broken = [o for o in outcomes if o.outcome == "broken"]
    for o in broken:
        print(f"{o.backbone}: {o.first} with {o.second}: {o.reason}")
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(o.outcome for o in outcomes).items())
    print(f"{len(outcomes)} pairs: {counts}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
