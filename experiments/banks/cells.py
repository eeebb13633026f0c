"""What is compared on what: sources, targets, contenders, all fixed before the first run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autopeft import Recipe
from autopeft.recipe.pooling import pooled
from autopeft.tasks import cluster_of

__all__ = [
    "CONTENDERS",
    "KINDS",
    "ROWS",
    "SOURCES",
    "SOURCE_ROWS",
    "SOURCE_SEED",
    "SOURCE_STEPS",
    "STEPS",
    "TARGETS",
    "Cell",
    "all_of",
    "cells",
    "cluster_name",
    "contenders",
    "inputs_of",
    "named",
    "options_of",
    "source_recipe",
]

TARGETS = ("trec", "movie-sentences", "sms-spam", "disaster-tweets")
"""One task of each cluster."""

SOURCES = (*TARGETS, "subjectivity", "trec-fine", "word-swap", "swapped-words", "inserted-words")
"""Tasks of the bank. A target is given the hybrids of the other clusters alone."""

ROWS, DRAWS, STEPS = (50, 500, 100), (900, 901, 902, 903, 904), 60
"""Numbers of rows, those that claims are made of first."""

KINDS: dict[str, dict[str, Any]] = {
    "adapter": {"serial_adapter": {"bottleneck": 24}},
    "lora": {"lora": {"rank": 12}},
}
"""What a source is trained as: 113,184 and 110,592 parameters on MiniLM."""

SOURCE_STEPS, SOURCE_ROWS, SOURCE_SEED = 240, 2_000, 7
_SOURCE_RATES = {"adapter": 1e-3, "lora": 4.5e-3}
_RATES = (1e-3, 2.2e-3, 4.5e-3, 9e-3)
_FUSION_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_HEAD_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_FEW = 5  # of a soup, at most

CONTENDERS = (
    "fresh LoRA",
    "fresh adapter",
    "head alone",
    "best start, LoRA",
    "best start, adapter",
    "frozen beside LoRA",
    "one trained on all",
    "AdapterSoup",
    "MerA",
    "AdapterFusion",
    "LoRAHub",
)
"""Each is tried in four ways on *select*, and the best one is trained with two fresh seeds."""

_WITH_MORE_ROWS = ("fresh LoRA", "best start, LoRA", "best start, adapter", "frozen beside LoRA")


def contenders(rows: int) -> tuple[str, ...]:
    """Those of a number of rows: all with the fewest, beyond that those of claim 2 and the two best ones."""
    return CONTENDERS if rows == min(ROWS) else _WITH_MORE_ROWS


@dataclass(frozen=True)
class Cell:
    """A target, so many of its training rows, and the draw of everything."""

    task: str
    rows: int
    draw: int

    def __str__(self) -> str:
        return f"{self.task}/{self.rows}/{self.draw}"


def cells() -> Iterator[Cell]:
    """All cells, the tasks of a draw and a number of rows one after the other, then the next draw."""
    for rows in ROWS:
        for draw in DRAWS:
            for task in TARGETS:
                yield Cell(task, rows, draw)


def inputs_of(task: str, kind: str) -> list[str]:
    """Names in the bank that a target is given: the sources that share no text with it."""
    own = cluster_of(task)
    return [named(source, kind) for source in SOURCES if cluster_of(source) != own]


def named(source: str, kind: str) -> str:
    """The name in the bank of a source that was trained as a kind."""
    return f"{source.replace('-', '_')}_{kind}"


def cluster_name(task: str) -> str:
    """The cluster of a task of the experiment."""
    return str(cluster_of(task))


def all_of(cluster: str) -> str:
    """The name in the bank of the adapter that all sources but those of a cluster trained."""
    return f"all_but_{cluster.replace('-', '_')}"


def source_recipe(source: str, kind: str) -> Recipe:
    """How a source is trained."""
    return _recipe(named(source, kind), [KINDS[kind]], rate=_SOURCE_RATES[kind])


def options_of(contender: str, ranked: dict[str, list[str]], shuffled: list[str]) -> list[Recipe]:
    """The four ways in which a contender is tried.

    Args:
        ranked: what a target is given of each kind, the best start first, and under `all` the adapter that
            was trained on all of it.
        shuffled: its LoRAs in an order of this draw's, which LoRAHub's search depends on.
    """
    adapters, loras = ranked["adapter"], ranked["lora"]
    adapter, lora = KINDS["adapter"], KINDS["lora"]
    if contender == "head alone":
        return [_recipe(contender, [], head=rate) for rate in _HEAD_RATES]
    if contender == "AdapterSoup":  # no step but the new head's
        soup = {**adapter, "from": adapters[:_FEW], "merge": "mean", "frozen": True}
        return [_recipe(contender, [soup], head=rate) for rate in _HEAD_RATES]
    if contender == "LoRAHub":
        hub = {"lorahub": {"rank": 12}, "from": shuffled}
        return [_recipe(contender, [hub], head=rate) for rate in _HEAD_RATES]
    if contender == "AdapterFusion":
        children = [{**adapter, "as": f"on_{name}", "from": name, "frozen": True} for name in adapters]
        return [_recipe(contender, [{"fuse": children}], rate=rate) for rate in _FUSION_RATES]
    items = {
        "fresh LoRA": [lora],
        "fresh adapter": [adapter],
        "best start, LoRA": [{**lora, "from": loras[0]}],
        "best start, adapter": [{**adapter, "from": adapters[0]}],
        "frozen beside LoRA": [{**adapter, "from": adapters[0], "frozen": True}, lora],
        "one trained on all": [{**adapter, "from": ranked["all"][0]}],
        "MerA": [{**adapter, "from": adapters, "merge": {"how": "mean", "align": "incoming"}}],
    }[contender]
    return [_recipe(contender, items, rate=rate) for rate in _RATES]


def _recipe(name: str, items: list[Any], *, rate: float = 1e-3, head: float = 1e-2) -> Recipe:
    """A recipe whose head reads the mean of all tokens, as those of searches mostly do."""
    used = {start for item in items for start in _starts(item)}
    told: dict[str, Any] = {
        "autopeft": 2,
        "name": name.replace(" ", "-").replace(",", ""),
        "training": {"learning_rate": rate, "groups": {"head": {"learning_rate": head}}},
    }
    if items:
        told["layers"] = [{"attach": items}]
    if used:
        told["inputs"] = {start: f"bank:{start}" for start in sorted(used)}
    return pooled(Recipe.from_dict(told), "mean")


def _starts(item: Any) -> list[str]:
    if "fuse" in item:
        return [start for child in item["fuse"] for start in _starts(child)]
    said = item.get("from", [])
    return [said] if isinstance(said, str) else said
