"""Methods on tiny models: what comes of them.

Methods *work* when they are attached to one tiny model, a training of a few real steps ends, and every
parameter of theirs has had a gradient on the way. Otherwise they are *refused*, with the sentence that the
user reads; anything else (a crash, a parameter that nothing ever moved) is *broken*.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from autopeft.backbones import spec_of_model
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach
from autopeft.method import get_method
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import acts_by_task, for_tasks
from autopeft.training import TrainingPlan
from autopeft.training.loop import train

from .tiny_rows import WORDS, tiny_rows

__all__ = ["Verdict", "recipe_of", "runs_for", "tried"]

Verdict: TypeAlias = Literal["works", "refused", "broken"]
# Enough for two steps in each stage of two methods that have some: factors behind one that starts at zero
# need them.
STEPS, BATCH = 16, 4
SEEDS = (0, 1, 2)
_WIDTH = 16
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
    "tpt": {"length": 4, "source_width": _WIDTH, "hidden": 8},
    "selective_prompt": {"keep": 1},
    "prefix_tuning": {"length": 4, "reparameterization": 8},
    "serial_adapter": {"bottleneck": 4},
    "parallel_adapter": {"bottleneck": 4},
    "compacter": {"bottleneck": 8},
    "kadaptation": {"phm_dim": 4},
    "mixlora": {"experts": 2, "rank": 2},
    "intrinsic_prompt": {"length": 4, "dimension": 2, "hidden": 8},
    "ipa": {"layers": 1, "width": 8, "heads": 2, "bins": 2, "interval": 8, "samples": 8},
}
_STARTED = {"tpt": "prompt", "intrinsic_prompt": "prompt", "lorahub": "lora"}
"""The run that a method starts from, in the folder that `runs_for` gives: a prompt of 4 rows of `_WIDTH`, or
a LoRA of the same model."""


def recipe_of(methods: Sequence[str], tasks: Sequence[str] = ()) -> Recipe:
    """Methods together, at their catalogue's defaults as far as those fit into a tiny model.

    Args:
        tasks: of the set that they are to learn; none where it is one task.
    """
    body: dict[str, list[Any]] = {"layers": [], "model": [], "policies": []}
    inputs: dict[str, Any] = {}
    for name in methods:
        item: dict[str, Any] = {name: _CONFIGS.get(name, {})}
        if name in _STARTED:
            run = _STARTED[name]
            each = [f"{run}_{task}" for task in tasks] if acts_by_task(name) else []
            item["from"] = each or run
            inputs |= {start: {"run": run} for start in each or [run]}
        body[get_method(name).traits.level.replace("training", "policies")].append(item)
    training = {"learning_rate": 1e-2, "weight_decay": 0.0, "policies": body.pop("policies")}
    layers = [{"attach": body["layers"]}] if body["layers"] else []
    tree = {"name": "pair", "layers": layers, "model": body["model"], "training": training}
    return for_tasks(Recipe.from_dict({**tree, "inputs": inputs} if inputs else tree), tasks)


# What a method starts from
# ---------------------------------------------------------------------------------------------------------


def runs_for(recipe: Recipe, make: Callable[[], PreTrainedModel]) -> Path:
    """A folder with the runs that a recipe starts from, which lasts as long as the process.

    Args:
        make: of a model such as the recipe is attached to.
    """
    folder = Path(_runs().name)
    if "lora" in recipe.inputs:
        lora = Recipe.from_dict({"name": "lora", "layers": [{"attach": ["lora"]}]})
        model = make()
        build_graph(recipe, spec_of_model(model)[0])  # what is refused is refused in the recipe's own words
        with attach(model, lora, seed=0) as hybrid:
            hybrid.save(folder / "lora" / "winner")
    return folder


@cache
def _runs() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="autopeft-tiny-")
    recipe = Recipe.from_dict({"name": "prompt", "model": [{"prompt_tuning": {"length": 4}}]})
    size = {"hidden_size": _WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = AutoModelForSequenceClassification.from_config(BertConfig(**size, vocab_size=WORDS))
    with attach(model, recipe, seed=0) as hybrid:
        hybrid.save(Path(folder.name) / "prompt" / "winner")
    return folder


# What comes of it
# ---------------------------------------------------------------------------------------------------------


def tried(make: Callable[[], PreTrainedModel], recipe: Recipe, kind: str) -> tuple[Verdict, str]:
    """Attach a recipe to a model that is made for it, train it for a few steps and tell what came of it.

    Args:
        make: of a model for tasks of this `kind`, always the same.

    Returns:
        The verdict, and why where it is not `works`.
    """
    try:
        idle = set[str]()
        # A router among positions may pass by the one that a head reads, as long as a training lasts here.
        for seed in SEEDS:
            with attach(make(), recipe, seed=seed, runs=runs_for(recipe, make)) as hybrid:
                found = _idle(hybrid, kind, seed)
            idle = idle & found if seed else found
            if not idle:
                return "works", ""
        return "broken", f"no gradient ever: {', '.join(sorted(idle))}"
    except AutoPEFTError as error:
        return "refused", str(error)
    except Exception as error:  # whatever it is, it is what a trial is there to find
        return "broken", f"{type(error).__name__}: {error}"


def _idle(hybrid: Hybrid, kind: str, seed: int) -> set[str]:
    """The parameters that had no gradient at any step of a training."""
    plan = TrainingPlan(steps=STEPS, batch_size=BATCH, seed=seed + 1, device="cpu")
    with _watched(hybrid) as (held, moved):
        train(hybrid, tiny_rows(kind, hybrid.model.config), plan)
    return held - moved


@contextmanager
def _watched(hybrid: Hybrid) -> Iterator[tuple[set[str], set[str]]]:
    """Names of the modules' parameters that were there at any step of an optimizer, and of those that had a
    gradient at one. What is found without gradients is left out."""
    searched = {name for name, parameter in hybrid.root.named_parameters() if not parameter.requires_grad}
    held: set[str] = set()
    moved: set[str] = set()

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for name, parameter in hybrid.root.named_parameters():
            if not parameter.numel() or name in searched:
                continue
            held.add(name)
            if parameter.grad is not None and bool(parameter.grad.any()):
                moved.add(name)

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield held, moved
    finally:
        handle.remove()
