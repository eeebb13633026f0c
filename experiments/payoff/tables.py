"""What the searches came to, as Markdown: the claims, then every contender against the winner, of both
confirmations and of the first round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis import Estimate, differences, estimate
from cells import ALPHA, CONTENDERS, ROUNDS, SEEDS, TOLD

from autopeft import Recipe
from autopeft.recipe.pooling import trained_entries

__all__ = ["CLAIMS", "FIRST", "SECOND", "VIEWS", "Claim", "Confirmation", "recommended", "returned", "tables"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """What is asked of a mean difference, in points.

    Attributes:
        least: that the mean has to reach; `None` for no such line.
        above: that the lower end of the interval has to lie above.
    """

    sentence: str
    other: str
    where: Callable[[Row], bool]
    least: float | None
    above: float

    def holds(self, found: Estimate) -> bool:
        """Whether both lines are met."""
        return found.lower > self.above and (self.least is None or found.mean >= self.least)


def _small(row: Row) -> bool:
    return row["model"] == "minilm" and row["budget"] == "0.04%"


def _large(row: Row) -> bool:
    return row["model"] == "minilm" and row["budget"] == "0.5%"


def _small_twice(row: Row) -> bool:
    """Searches that all cells of a budget have, not those with 100 rows alone."""
    return _small(row) and row["seed"] in SEEDS


def _few(row: Row) -> bool:
    return row["model"] == "minilm" and row["rows"] == 100


CLAIMS = (
    Claim("At 0.5 % the winner is above tuned LoRA, by half a point or more", "tuned LoRA", _large, 0.5, 0.0),
    Claim("At 0.04 % it is not worse than tuned LoRA by more than a point", "tuned LoRA", _small, None, -1.0),
    Claim(
        "With 100 rows it is above LoRA as users take it, by one and a half points or more",
        "LoRA as users take it",
        _few,
        1.5,
        0.0,
    ),
    Claim(
        "With 100 rows it is not worse than tuned LoRA by more than a point", "tuned LoRA", _few, None, -1.0
    ),
)


VIEWS: Mapping[str, Callable[[Row], bool]] = {
    "0.5 %": _large,
    "0.04 %": _small,
    "100 rows": _few,
    "500 rows": lambda row: row["model"] == "minilm" and row["rows"] == 500,
    "2,000 rows": lambda row: row["model"] == "minilm" and row["rows"] == 2_000,
}
"""Cells that are averaged, by what they are called."""


@dataclass(frozen=True)
class Confirmation:
    """What is told of a confirmation.

    Attributes:
        seeds: of its searches.
        asked: its claims.
        pooled: see `estimate`.
    """

    seeds: Sequence[int]
    asked: Sequence[Claim]
    views: Mapping[str, Callable[[Row], bool]]
    pooled: bool

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of its searches."""
        return [row for row in rows if row["seed"] in self.seeds]


SECOND = Confirmation(
    ROUNDS[2],
    (replace(CLAIMS[1], where=_small_twice), *CLAIMS[2:]),
    {
        "0.04 %": _small_twice,
        "100 rows": _few,
        "100 rows, 0.5 %": lambda row: _few(row) and _large(row),
        "100 rows, 0.04 %": lambda row: _few(row) and _small(row),
    },
    pooled=True,
)
FIRST = Confirmation(ROUNDS[1], CLAIMS, VIEWS, pooled=False)


def tables(rows: Sequence[Row]) -> str:
    """Markdown of what there is, the latest round first."""
    stopped = [row for row in rows if row["seed"] in ROUNDS[0]]
    lines = ["Second confirmation", "", *_confirmed(SECOND, rows), "", "First confirmation", ""]
    lines += [*_confirmed(FIRST, rows), ""]
    return "\n".join(
        [*lines, *_against(stopped, CONTENDERS[1:], "first round, stopped: winner less …", FIRST)]
    )


def _confirmed(which: Confirmation, rows: Sequence[Row]) -> list[str]:
    rows = which.of(rows)
    lines = [
        "| claim | mean over cells, points (clusters) | cells, searches | it holds | for all at once |",
        "|---|---|---|---|---|",
    ]
    for claim in which.asked:
        told = differences(rows, "winner", claim.other, claim.where)
        levels = (1 - ALPHA, 1 - ALPHA / len(which.asked))
        each, all_of_them = (estimate(told, level, pooled=which.pooled) for level in levels)
        if each is None or all_of_them is None:
            lines.append(f"| {claim.sentence} | not yet known | | | |")
        else:
            verdicts = " | ".join("yes" if claim.holds(e) else "no" for e in (each, all_of_them))
            lines.append(f"| {claim.sentence} | {_told(each)} | {verdicts} |")
    lines += ["", *_against(rows, TOLD[1:], "winner less …", which), "", returned(rows), ""]
    return [*lines, recommended(rows, pooled=which.pooled)]


def returned(rows: Sequence[Row]) -> str:
    """In how many searches the winner is the tuned LoRA, and how far it is from it: in a sentence."""
    name, minilm = "tuned LoRA", [row for row in rows if row["model"] == "minilm" and row["test"]]
    both: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in minilm:
        key = (row["task"], row["rows"], row["budget"], row["seed"])
        both.setdefault(key, {})[row["contender"]] = row["hash"]
    hashes = [(found["winner"], found[name]) for found in both.values() if {"winner", name} <= found.keys()]
    if not hashes:
        return "No search is recorded yet."
    same, found = sum(one == other for one, other in hashes), differences(minilm, "winner", name).values()
    ends = f"{min(found):+.1f} to {max(found):+.1f} points"
    return f"On MiniLM the winner is the tuned LoRA in {same} of {len(hashes)} searches: {ends} to it."


def recommended(rows: Sequence[Row], *, pooled: bool = False) -> str:
    """What `autopeft recommend` says without a look at the task, beside a search: in a sentence."""
    name, minilm = "portfolio's first", [row for row in rows if row["model"] == "minilm" and row["test"]]
    found = [row for row in minilm if row["contender"] == name]
    if not found:
        return "No recommendation is recorded yet."
    plain = sum(_is_lora(row["recipe"]) for row in found)
    told = estimate(differences(minilm, name, "winner"), pooled=pooled)
    less = "not yet known" if told is None else f"{told} points (lower end {told.lower:+.2f})"
    return f"The portfolio's first less the winner: {less}. It is LoRA in {plain} of {len(found)} searches."


def _is_lora(recipe: Mapping[str, Any]) -> bool:
    entries = trained_entries(Recipe.from_dict(dict(recipe)))
    return {entry.method for entry in entries} == {"lora"}


def _against(rows: Sequence[Row], others: Sequence[str], title: str, which: Confirmation) -> list[str]:
    lines = [f"| {title} | {' | '.join(which.views)} | mpnet-base |", "|---" * (len(which.views) + 2) + "|"]
    for other in others:
        found = [differences(rows, "winner", other, view) for view in which.views.values()]
        cells = [_cell(told, pooled=which.pooled) for told in found]
        larger = differences(rows, "winner", other, lambda row: row["model"] == "mpnet-base")
        cells.append(", ".join(f"{value:+.1f}" for value in larger.values()) or "–")
        lines.append(f"| {other} | {' | '.join(cells)} |")
    return lines


def _told(found: Estimate) -> str:
    spread = ", ".join(f"{name} {mean:+.1f}" for name, mean in found.clusters.items())
    return f"{found} ({spread}) | {found.cells}, {found.searches}"


def _cell(found: Mapping[tuple[str, int], float], *, pooled: bool) -> str:
    told = estimate(found, pooled=pooled)
    if told is None and found:  # one search a cell
        return f"{statistics.fmean(found.values()):+.1f}"
    return "–" if told is None else str(told)
