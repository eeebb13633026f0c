"""Work for the processes of a training: each makes the same tiny model, shards it and trains a hybrid."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from autopeft.backbones import base_model_of, layout_of, spec_of_model
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.tasks import EncodedTask, load_task
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan, full_fine_tuning, run_trial
from autopeft.training.distributed import current_team
from autopeft.training.sharded import held_bytes, shard

from .families import FAMILIES
from .language import save_decoder, write_chats
from .training import encoded_task, tiny_bert

HYBRID = {
    "name": "hybrid",
    "layers": [
        {"attach": [{"lora": {"rank": 2, "sites": ["q", "v"]}}, {"serial_adapter": {"bottleneck": 4}}]}
    ],
    "model": [{"prompt_tuning": {"length": 3}}],
    "training": {"learning_rate": 1e-2},
}


@dataclass(frozen=True)
class Seen:
    """What one process saw: losses, scores, what had been trained in the end, and bytes of the layers."""

    losses: list[float]
    scores: Mapping[str, float]
    parameters: Mapping[str, Tensor]
    held: int
    layers: int  # of the whole model
    peers: int


def classifier() -> tuple[PreTrainedModel, EncodedTask]:
    """A tiny BERT with its task."""
    return tiny_bert(), encoded_task(train=45)


def save_language(folder: Path) -> Path:
    """What `language` reads: a tiny Llama with conversations."""
    save_decoder(folder)
    write_chats(folder / "chats.jsonl")
    return folder


def language(folder: Path) -> tuple[PreTrainedModel, EncodedTask]:
    """A tiny Llama with conversations."""
    task = load_task(str(folder / "chats.jsonl"), kind="causal_lm")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, encode(task, AutoTokenizer.from_pretrained(folder), 64)


def trained(
    folder: Path | None,
    recipe: Mapping[str, Any] = HYBRID,
    plan: Mapping[str, Any] | None = None,
    splits: Sequence[str] = ("select",),
    metric: str | None = None,
) -> Seen:
    """Train a recipe on the classifier, or on a folder's language model, over the processes there are."""
    torch.set_num_threads(1)
    model, data = classifier() if folder is None else language(folder)
    layers = [layer for stack in layout_of(base_model_of(model)).stacks for layer in stack.layers]
    size = sum(
        p.numel() * p.element_size()
        for path in layers
        for p in base_model_of(model).get_submodule(path).parameters()
    )
    if current_team() is not None:
        shard(model)
    kept: dict[str, Tensor] = {}

    def keep(hybrid: Hybrid, scores: Mapping[str, float]) -> None:
        learned = {**dict(hybrid.root.named_parameters()), **hybrid.head()}
        kept.update({name: p.detach().clone() for name, p in learned.items()})

    told: dict[str, Any] = {"steps": 8, "batch_size": 8, "device": "cpu", "max_length": 64, **(plan or {})}
    outcome = run_trial(
        model,
        Recipe.from_dict(dict(recipe)),
        data,
        TrainingPlan(**told),
        splits=splits,
        metric=metric,
        keep=keep,
    )
    team = current_team()
    return Seen(
        outcome.train.losses, outcome.scores, kept, held_bytes(model), size, 1 if team is None else team.size
    )


def written(family: str) -> tuple[list[list[int]], list[Tensor]]:
    """What a tiny model writes before its first forward as a whole, and a LoRA's gradients behind that."""
    torch.manual_seed(0)
    model, ids = FAMILIES[family].model(FAMILIES[family].config()).eval(), torch.arange(3, 17).view(2, 7)
    if current_team() is not None:
        shard(model)
    texts = model.generate(ids, max_new_tokens=3, do_sample=False)
    recipe = Recipe.from_dict({"name": "lora", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    with attach(model, recipe, seed=0) as hybrid:
        model(input_ids=ids, decoder_input_ids=ids).logits.square().mean().backward()
        return texts.tolist(), [p.grad for p in hybrid.root.parameters() if p.grad is not None]


def full() -> None:
    """Train all of a sharded model, which is refused."""
    model, data = classifier()
    shard(model)
    full_fine_tuning(model, data, TrainingPlan(steps=1, device="cpu"))


def wandering() -> None:
    """Train with a parameter that another process changes too."""
    model, data = classifier()
    shard(model)

    def alter(step: int, loss: float) -> None:
        team = current_team()
        if team is not None and team.rank == 1:
            with torch.no_grad():
                next(model.get_submodule("autopeft").parameters()).add_(1.0)

    plan = TrainingPlan(steps=2, device="cpu")
    run_trial(model, Recipe.from_dict(HYBRID), data, plan, on_step=alter)


def killed(rank: int) -> None:
    """End one process by SIGKILL while all of them wait for each other."""
    team = current_team()
    assert team is not None
    if team.rank == rank:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    team.first(None)
    team.all_reduce(torch.zeros(()), [])
    time.sleep(0.1)
    team.all_reduce(torch.zeros(()), [])


def raised(rank: int, error: Exception) -> None:
    """Raise an error in one process while the others wait, or in all of them (-1)."""
    team = current_team()
    assert team is not None
    if rank in (team.rank, -1):
        raise error
    team.all_reduce(torch.zeros(()), [])


def spec_of_classifier() -> BackboneSpec:
    """Of the tiny BERT, its head included."""
    return spec_of_model(tiny_bert())[0]
