"""Pages of what works with what, from the matrix that `experiments/support_matrix` recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from generate.documents import ROOT
from generate.markdown import cell, table

__all__ = ["pages"]

MATRIX = "experiments/support_matrix/results/matrix.json"
_FOLDER = "results/support"
_WORKS = "·"
_HEAD = """\
# What works with what

Every method was tried alone on a tiny model of every family, for every kind of task: attached, trained for
some steps, and each of its parameters looked at for a gradient. It works, or it is refused with a sentence;
[the experiment](../experiments/support_matrix.md) says how. A rule of training was tried beside `lora`.

A column is a kind of task, and leads to the page that names each method. A cell says how many of the methods
work with that family; a number in brackets is the sentence below by which the kind does not take the family
at all.
"""
_KIND = """\
# {kind}: what works with what

Each method alone on a tiny model of each family that tasks of this kind take: {works} works, a number is the
sentence below by which it is refused. See [all kinds](index.md).
"""


def pages() -> dict[str, str]:
    """A page of all kinds by family, and a page of methods by family for each kind."""
    found = json.loads((ROOT / MATRIX).read_text(encoding="utf-8"))
    kinds = sorted({place.split()[1] for place in (*found["cells"], *found["refused"])})
    made = {f"{_FOLDER}/{kind}.md": _of_kind(found, kind) for kind in kinds if _families(found, kind)}
    return {f"{_FOLDER}/index.md": _overview(found, kinds), **made}


def _families(found: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, int | None]]:
    """What comes of the methods, by family that a kind takes."""
    return {p.split()[0]: methods for p, methods in found["cells"].items() if p.split()[1] == kind}


class _Notes:
    """Sentences, numbered in the order in which a page refers to them."""

    def __init__(self, sentences: list[str]) -> None:
        self._sentences = sentences
        self._order: dict[int, int] = {}

    def number(self, index: int) -> int:
        return self._order.setdefault(index, len(self._order) + 1)

    def lines(self) -> list[str]:
        return [f"{number}. {cell(self._sentences[index])}" for index, number in self._order.items()]


def _overview(found: Mapping[str, Any], kinds: list[str]) -> str:
    notes = _Notes(found["reasons"])
    rows = []
    for family in sorted({place.split()[0] for place in (*found["cells"], *found["refused"])}):
        row = [f"`{family}`"]
        for kind in kinds:
            methods = found["cells"].get(f"{family} {kind}")
            if methods is None:
                row.append(f"[{notes.number(found['refused'][f'{family} {kind}'])}]")
            else:
                row.append(f"{sum(v is None for v in methods.values())} of {len(methods)}")
        rows.append(row)
    names = [f"[{kind}]({kind}.md)" if _families(found, kind) else kind for kind in kinds]
    return "\n".join([_HEAD, table(["family", *names], rows), "", *notes.lines()]) + "\n"


def _of_kind(found: Mapping[str, Any], kind: str) -> str:
    notes, families = _Notes(found["reasons"]), _families(found, kind)
    methods = sorted({method for own in families.values() for method in own})
    rows = []
    for method in methods:
        numbers = [own[method] for own in families.values()]
        told = [_WORKS if number is None else str(notes.number(number)) for number in numbers]
        rows.append([f"[{method}](../../methods/{method}.md)", *told])
    head = _KIND.format(kind=kind, works=_WORKS)
    return "\n".join([head, table(["", *families], rows), "", *notes.lines()]) + "\n"
