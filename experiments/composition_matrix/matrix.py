"""Methods alone and two on one model: what comes of each.

A pair *works* when both methods are attached to one tiny model, a training of a few real steps ends, and
every parameter of both has had a gradient on the way. Otherwise it is *refused*, with the sentence that the
user reads; anything else (a crash, a parameter that nothing ever moved) is *broken*. A method alone is a pair
without a second one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from tiny import MODELS, SOURCE, data_of, runs_with_prompt
from torch.optim.optimizer import register_optimizer_step_pre_hook

from autopeft.backbones import spec_of_model
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec, Site
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan
from autopeft.training.checks import check_recipe
from autopeft.training.loop import train

__all__ = [
    "Outcome",
    "Pair",
    "all_pairs",
    "alone",
    "class_of",
    "everything",
    "one_of_each_class",
    "outcome_of",
    "sampled",
]

# Enough for two steps in each stage of two methods that have some: factors behind one that starts at zero
# need them.
STEPS, BATCH = 16, 4
SEEDS = (0, 1, 2)
# What does not fit into a model of this size at its default, takes many rows to calibrate, or would mask the
# gradient of a single number in all of its few steps.
_CONFIGS: dict[str, dict[str, Any]] = {
    "child_tuning_f": {"p": 0.99},
    "fish_mask": {"keep": "2%", "samples": 4},
    "fish_dip": {"keep": "2%", "every": 4},
    "sam": {"batches": 4},
    "sensitivity_tuning": {"keep": "20%", "rank": 2, "batches": 2, "batch_size": 4},
    "intrinsic_said": {"dimension": 60},
    "adalora": {"rank": 2, "interval": 1},
    "dylora": {"rank": 2},  # each step trains one rank, drawn at random
    "prompt_tuning": {"length": 4},
    "spot": {"length": 4},
    "tpt": {"length": 4, "source_width": 16, "hidden": 8},
    "selective_prompt": {"keep": 1},
    "prefix_tuning": {"length": 4, "reparameterization": 8},
    "serial_adapter": {"bottleneck": 4},
    "parallel_adapter": {"bottleneck": 4},
    "compacter": {"bottleneck": 8},
    "kadaptation": {"phm_dim": 4},
    "ipa": {"layers": 1, "width": 8, "heads": 2, "bins": 2, "interval": 8, "samples": 8},
}
_STARTED = ("tpt",)  # which start from another training's prompt


@dataclass(frozen=True)
class Pair:
    """Two methods, which may be the same, or one (`second` is `None`), on a model of `tiny.MODELS`."""

    model: str
    first: str
    second: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def recipe(self) -> Recipe:
        """Its methods at their catalogue's defaults, as far as those fit."""
        body: dict[str, list[Any]] = {"layers": [], "model": [], "policies": []}
        inputs: dict[str, Any] = {}
        for name in self.methods:
            item: dict[str, Any] = {name: _CONFIGS.get(name, {})}
            if name in _STARTED:
                inputs, item["from"] = SOURCE, next(iter(SOURCE))
            body[get_method(name).traits.level.replace("training", "policies")].append(item)
        training = {"learning_rate": 1e-2, "weight_decay": 0.0, "policies": body.pop("policies")}
        layers = [{"attach": body["layers"]}] if body["layers"] else []
        tree = {"name": "pair", "layers": layers, "model": body["model"], "training": training}
        return Recipe.from_dict({**tree, "inputs": inputs} if inputs else tree)


@dataclass(frozen=True)
class Outcome:
    """What came of a pair: `works`, `refused` or `broken`, and why."""

    model: str
    first: str
    second: str | None
    outcome: str
    reason: str = ""

    @property
    def pair(self) -> Pair:
        return Pair(self.model, self.first, self.second)

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


# What is tried
# ---------------------------------------------------------------------------------------------------------


def everything() -> list[Pair]:
    """All that is recorded: each method alone on each model, one pair of each class on some of them, and
    every pair on the others."""
    whole = [name for name, tiny in MODELS.items() if tiny.every_pair]
    some = [pair for name in MODELS if name not in whole for pair in one_of_each_class(all_pairs([name]))]
    return [*alone(), *some, *all_pairs(whole)]


def alone(models: Sequence[str] = tuple(MODELS)) -> list[Pair]:
    """Every registered method by itself."""
    return [Pair(model, name) for model in models for name in method_names()]


def all_pairs(models: Sequence[str]) -> list[Pair]:
    """Every pair of registered methods, each method with itself too."""
    names = method_names()
    return [Pair(m, *pair) for m in models for pair in itertools.combinations_with_replacement(names, 2)]


@cache
def class_of(pair: Pair) -> tuple[Any, ...]:
    """How the two act, and at what kinds of site they meet; `None` where the pair, or one of the two by
    itself, is refused."""
    ways = sorted("+".join(sorted(get_method(name).traits.ways)) for name in pair.methods)
    try:
        graph = build_graph(pair.recipe(), _spec(pair.model))
    except AutoPEFTError:
        return (pair.model, *ways, None)
    if not all(_fits(pair.model, name) for name in pair.methods):
        return (pair.model, *ways, None)
    sites = [set(entry.sites) for entry in graph.entries.values()]
    shared = sites[0] & sites[1] if len(sites) == 2 else set()
    return (pair.model, *ways, tuple(sorted({_kind(site) for site in shared})))


def _kind(site: Site) -> tuple[str, str, bool]:
    """Stack and kind of a site, and whether it belongs to cross-attention."""
    return site.stack, site.kind, site.name.startswith("cross_")


@cache
def _fits(model: str, method: str) -> bool:
    """Whether a method by itself is taken by the model and by its kind of task; policies act on others."""
    if get_method(method).traits.level == "training":
        return True
    tiny, recipe = MODELS[model], Pair(model, method).recipe()
    try:
        with attach(tiny.model(), recipe, seed=0, runs=runs_with_prompt()) as hybrid:
            check_recipe(hybrid, get_kind(tiny.kind))
    except AutoPEFTError:
        return False
    return True


@cache
def _spec(model: str) -> BackboneSpec:
    return spec_of_model(MODELS[model].model())[0]


def one_of_each_class(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pair of each class (see `class_of`)."""
    found: dict[Any, Pair] = {}
    for pair in pairs:
        found.setdefault(class_of(pair), pair)
    return list(found.values())


def sampled(pairs: Sequence[Pair], share: float, seed: int = 0) -> list[Pair]:
    """A seeded share of the pairs."""
    return random.Random(seed).sample(list(pairs), max(1, round(share * len(pairs))))


# What comes of it
# ---------------------------------------------------------------------------------------------------------


def outcome_of(pair: Pair) -> Outcome:
    """Attach a pair, train it for a few steps and tell what came of it."""
    names = asdict(pair)
    try:
        idle = set[str]()
        # A router among positions may pass by the one that a head reads, as long as a training lasts here.
        for seed in SEEDS:
            model = MODELS[pair.model].model()
            with attach(model, pair.recipe(), seed=seed, runs=runs_with_prompt()) as hybrid:
                found = _idle(hybrid, MODELS[pair.model].kind, seed)
            idle = idle & found if seed else found
            if not idle:
                return Outcome(**names, outcome="works")
        reason = f"no gradient ever: {', '.join(sorted(idle))}"
        return Outcome(**names, outcome="broken", reason=reason)
    except AutoPEFTError as error:
        return Outcome(**names, outcome="refused", reason=str(error))
    except Exception as error:  # whatever it is, it is what the table is there to find
        return Outcome(**names, outcome="broken", reason=f"{type(error).__name__}: {error}")


def _idle(hybrid: Hybrid, kind: str, seed: int) -> set[str]:
    """The parameters that had no gradient at any step of a training."""
    plan = TrainingPlan(steps=STEPS, batch_size=BATCH, seed=seed + 1, device="cpu")
    with _watched(hybrid) as (held, moved):
        train(hybrid, data_of(kind), plan)
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
