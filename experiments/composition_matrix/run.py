"""Every pair of methods on a tiny BERT and a tiny Llama: works, or is refused with a sentence.

    python experiments/composition_matrix/run.py     # minutes on one core; writes table.md and outcomes.json

It ends with 1 where a pair neither works nor is refused.
"""

from __future__ import annotations

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

HERE = Path(__file__).parent


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


def main() -> None:
    torch.set_num_threads(1)
    outcomes = [outcome_of(pair) for pair in track(all_pairs(), "pairs")]
    text = json.dumps([o.to_dict() for o in outcomes], indent=1)
    (HERE / "outcomes.json").write_text(text + "\n", encoding="utf-8")
    (HERE / "table.md").write_text(table(outcomes), encoding="utf-8")
    broken = [o for o in outcomes if o.outcome == "broken"]
    for o in broken:
        print(f"{o.backbone}: {o.first} with {o.second}: {o.reason}")
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(o.outcome for o in outcomes).items())
    print(f"{len(outcomes)} pairs: {counts}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
