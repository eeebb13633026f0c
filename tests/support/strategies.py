"""What a strategy is opened with: a context on a model of six layers, and a store in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.counting import Budget
from autopeft.effort import EFFORTS
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.space import Space
from autopeft.search.strategies.contract import StrategyContext

from .projecting import MINILM

__all__ = ["Store", "context_of"]


class Store(dict[str, Mapping[str, bytes]]):
    """Files by key."""

    put = dict.__setitem__
    size = 0

    def drop(self, key: str) -> None:
        """Forget a key."""
        self.pop(key, None)


def context_of(folder: Path, *, trials: int, **more: Any) -> StrategyContext:
    """Of a quick search at 0.5 % in the space `gates`, or as `more` says."""
    usual: dict[str, Any] = {
        "space": Space.named("gates").bind(MINILM),
        "budget": Budget.parse("0.5%"),
        "effort": replace(EFFORTS["quick"], trials=trials),
        "seed": 3,
        "sampler": "tpe",
        "rungs": Rungs((60,), (1.0,)),
        "objectives": 1,
        "folder": folder,
        "checkpoints": Store(),
    }
    return StrategyContext(**{**usual, **more})
