"""Two methods on one backbone: what comes of every pair.

A pair *works* when both methods are attached to one tiny model, a training of a few real steps ends, and
every parameter of both has had a gradient on the way. Otherwise it is *refused*, with the sentence that the
user reads; anything else (a crash, a parameter that nothing ever moved) is *broken*.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.task import Source, Split, Task
from autopeft.training import TrainingPlan
from autopeft.training.loop import train

__all__ = ["BACKBONES", "Outcome", "Pair", "all_pairs", "one_of_each_class", "outcome_of", "sampled"]

BACKBONES = ("bert", "llama")
# Enough for two steps in each stage of two methods that have some: factors behind one that starts at zero
# need them.
STEPS, BATCH, VOCABULARY = 16, 4, 40
SEEDS = (0, 1, 2)
_SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": VOCABULARY, "max_position_embeddings": 96, "pad_token_id": 0,
}  # fmt: skip
# What does not fit into a model of this size at its default, takes many rows to calibrate, or would mask the
# gradient of a single number in all of its few steps.
_CONFIGS: dict[str, dict[str, Any]] = {
    "child_tuning_f": {"p": 0.99},
    "fish_mask": {"keep": "2%", "samples": 4},
    "sensitivity_tuning": {"keep": "20%", "rank": 2, "batches": 2, "batch_size": 4},
    "intrinsic_said": {"dimension": 40},
    "adalora": {"rank": 2, "interval": 1},
    "dylora": {"rank": 2},  # each step trains one rank, drawn at random
    "prompt_tuning": {"length": 4},
    "prefix_tuning": {"length": 4, "reparameterization": 8},
    "serial_adapter": {"bottleneck": 4},
    "parallel_adapter": {"bottleneck": 4},
    "compacter": {"bottleneck": 8},
    "kadaptation": {"phm_dim": 4},
}


@dataclass(frozen=True)
class Pair:
    """Two methods, which may be the same, on a backbone."""

    backbone: str
    first: str
    second: str

    def recipe(self) -> Recipe:
        """Both at their catalogue's defaults, as far as those fit."""
        body: dict[str, list[Any]] = {"layers": [], "model": [], "policies": []}
        for name in (self.first, self.second):
            body[get_method(name).traits.level.replace("training", "policies")].append(
                {name: _CONFIGS.get(name, {})}
            )
        training = {"learning_rate": 1e-2, "weight_decay": 0.0, "policies": body.pop("policies")}
        layers = [{"attach": body["layers"]}] if body["layers"] else []
        return Recipe.from_dict(
            {"name": "pair", "layers": layers, "model": body["model"], "training": training}
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a pair: `works`, `refused` or `broken`, and why."""

    backbone: str
    first: str
    second: str
    outcome: str
    reason: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def all_pairs(backbones: Sequence[str] = BACKBONES) -> list[Pair]:
    """Every pair of registered methods, each method with itself too."""
    names = method_names()
    return [Pair(b, *pair) for b in backbones for pair in itertools.combinations_with_replacement(names, 2)]


def class_of(pair: Pair) -> tuple[Any, ...]:
    """How the two act, and at what kinds of site they meet; `None` where the pair is refused."""
    ways = sorted("+".join(sorted(get_method(name).traits.ways)) for name in (pair.first, pair.second))
    try:
        graph = build_graph(pair.recipe(), spec_of(_config(pair.backbone)))
    except AutoPEFTError:
        return (pair.backbone, *ways, None)
    sites = [set(entry.sites) for entry in graph.entries.values()]
    shared = sites[0] & sites[1] if len(sites) == 2 else set()
    return (pair.backbone, *ways, tuple(sorted({site.kind for site in shared})))


def one_of_each_class(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pair of each class (see `class_of`)."""
    found: dict[Any, Pair] = {}
    for pair in pairs:
        found.setdefault(class_of(pair), pair)
    return list(found.values())


def sampled(pairs: Sequence[Pair], share: float, seed: int = 0) -> list[Pair]:
    """A seeded share of the pairs."""
    return random.Random(seed).sample(list(pairs), max(1, round(share * len(pairs))))


def outcome_of(pair: Pair) -> Outcome:
    """Attach a pair, train it for a few steps and tell what came of it."""
    names = asdict(pair)
    try:
        idle = set[str]()
        # A router among positions may pass by the one that a head reads, as long as a training lasts here.
        for seed in SEEDS:
            with attach(_model(pair.backbone), pair.recipe(), seed=seed) as hybrid:
                found = _idle(hybrid, seed)
            idle = idle & found if seed else found
            if not idle:
                return Outcome(**names, outcome="works")
        reason = f"no gradient ever: {', '.join(sorted(idle))}"
        return Outcome(**names, outcome="broken", reason=reason)
    except AutoPEFTError as error:
        return Outcome(**names, outcome="refused", reason=str(error))
    except Exception as error:  # whatever it is, it is what the table is there to find
        return Outcome(**names, outcome="broken", reason=f"{type(error).__name__}: {error}")


def _idle(hybrid: Hybrid, seed: int) -> set[str]:
    """The parameters that had no gradient at any step of a training."""
    with _watched(hybrid) as (held, moved):
        train(hybrid, _data(), TrainingPlan(steps=STEPS, batch_size=BATCH, seed=seed + 1, device="cpu"))
    return held - moved


@contextmanager
def _watched(hybrid: Hybrid) -> Iterator[tuple[set[str], set[str]]]:
    """Names of the modules' parameters that were there at any step of an optimizer, and of those that had a
    gradient at one."""
    held: set[str] = set()
    moved: set[str] = set()

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for name, parameter in hybrid.root.named_parameters():
            if not parameter.numel():
                continue
            held.add(name)
            if parameter.grad is not None and bool(parameter.grad.any()):
                moved.add(name)

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield held, moved
    finally:
        handle.remove()


def _config(backbone: str) -> Any:
    return AutoConfig.for_model(backbone, **_SIZES, num_labels=2)


def _model(backbone: str) -> PreTrainedModel:
    torch.manual_seed(3)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(_config(backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)  # so that nothing is lost in rounding
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))  # some methods read biases, which are zero
    return model.eval()


@lru_cache(maxsize=1)
def _data() -> EncodedTask:
    """Rows of random tokens; the label says whether token 7 is among them."""
    splits = {name: _split(rows, seed) for seed, (name, rows) in enumerate(_ROWS.items())}
    texts: Any = {name: Split([""] * len(s), None, list(s.labels)) for name, s in splits.items()}
    source = Source("file", "random", "0" * 64)
    task = Task("random", "classification", ("no", "yes"), texts, "accuracy", None, source)
    return EncodedTask(task, splits, 16)


_ROWS = {"train": 24, "select": 8, "test": 8}


def _split(rows: int, seed: int) -> EncodedSplit:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(8, VOCABULARY, size=n) for n in rng.integers(3, 13, size=rows)]
    labels = rng.integers(0, 2, size=rows)
    for text, label in zip(texts, labels, strict=True):
        if label:
            text[rng.integers(0, len(text))] = 7
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    ids = np.concatenate(texts).astype(np.int32)
    return EncodedSplit(
        ids=ids, offsets=offsets, types=None, labels=labels.astype(np.int64), kind="classification",
        pad_id=0, pad_type=0, max_length=16,
    )  # fmt: skip
