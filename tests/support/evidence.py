"""Recorded trainings that nobody trained: of the portfolio's recipes on a spec, with gains that are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.search.portfolio.choices import members
from autopeft.search.portfolio.evidence import Evidence, Key, Setting, read_evidence
from autopeft.search.portfolio.packing import packed
from autopeft.search.portfolio.templates import FittedRecipe
from autopeft.spec import BackboneSpec

__all__ = ["BUDGETS", "TASKS", "evidence", "minilm_spec", "recorded", "text_of"]

TASKS = ("trec", "trec-fine", "movie-sentences", "subjectivity", "sms-spam")
BUDGETS = ("0.5%", "0.15%", "0.04%")
STEPS, BATCH = 60, 32
Gain = Callable[[Key, Setting], float]


@lru_cache(maxsize=1)
def minilm_spec() -> BackboneSpec:
    """Of a backbone of MiniLM's size."""
    return spec_of(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )


@lru_cache
def fitted_at(budget: str) -> tuple[FittedRecipe, ...]:
    return tuple(members(minilm_spec(), Budget.parse(budget)))


def recorded(gain: Gain, *, noise: float = 0.0, seeds: int = 2) -> Iterator[dict[str, Any]]:
    """Rows as the experiment records them: `gain` is in points above 80, `noise` their standard deviation."""
    draw = random.Random(0)
    unique = {m.hash: m for budget in BUDGETS for m in fitted_at(budget)}
    for task in TASKS:
        for rows in (100, 500, 2000):
            for seed in range(seeds):
                setting = Setting("minilm", task, rows, seed)
                for member in unique.values():
                    key = Key(member.template, member.rate)
                    points = 80.0 + gain(key, setting) + draw.gauss(0.0, noise)
                    yield {
                        **setting._asdict(), "template": key.template, "rate": key.rate, "size": member.size,
                        "hash": member.hash, "steps": STEPS, "score": points / 100,
                        "step_time": 0.1 if key.template == "lora" else 0.05,
                    }  # fmt: skip


def text_of(rows: Any, readings: Any = ()) -> str:
    """Rows as the package's data."""
    shares: Mapping[float, tuple[FittedRecipe, ...]] = {
        Budget.parse(b).limits(minilm_spec())[1] / minilm_spec().parameters: fitted_at(b) for b in BUDGETS
    }
    return packed(list(rows), {"minilm": shares}, readings, steps=STEPS, batch_size=BATCH)


def evidence(gain: Gain, *, noise: float = 0.0, seeds: int = 2) -> Evidence:
    """What the package would read of them."""
    return read_evidence(text_of(recorded(gain, noise=noise, seeds=seeds)))
