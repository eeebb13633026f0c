"""A toy task and toy models for the training room: small enough for exact comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from autopeft.counting import Counts
from autopeft.recipe import Recipe
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.task import Source, Split, Task

VOCABULARY = 40
LORA = {"lora": {"rank": 4, "sites": ["q", "v", "up", "down"]}}


def lora_recipe(*whole: dict[str, Any], at: Any = "all", rate: float = 0.02) -> Recipe:
    """LoRA that a tiny backbone learns with, at some layers, or in its place what acts on the whole model."""
    places = {"model": list(whole)} if whole else {"layers": [{"at": at, "attach": [LORA]}]}
    return Recipe.from_dict({**places, "training": {"learning_rate": rate}, "name": "r"})


def encoded_split(rows: int, seed: int, kind: str = "classification") -> EncodedSplit:
    """Rows of 3 to 12 tokens; the label says whether token 7 is among them (or how often, for regression)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, size=rows)
    texts = [rng.integers(8, VOCABULARY, size=n) for n in lengths]
    labels = rng.integers(0, 2, size=rows)
    for text, label in zip(texts, labels, strict=True):
        if label:
            text[rng.integers(0, len(text))] = 7
    return EncodedSplit(
        ids=np.concatenate(texts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        types=None,
        labels=labels.astype(np.int64 if kind == "classification" else np.float32),
        kind=kind,
        pad_id=0,
        pad_type=0,
        max_length=16,
    )


def stop_after(steps: int) -> Callable[[], bool]:
    """For `should_stop`, which is asked after each step: whether so many are taken."""
    taken = itertools.count(1)
    return lambda: next(taken) >= steps


def encoded_task(
    train: int = 48,
    select: int = 20,
    test: int = 20,
    kind: str = "classification",
    class_weights: list[float] | None = None,
) -> EncodedTask:
    splits = {
        name: encoded_split(rows, seed, kind)
        for seed, (name, rows) in enumerate({"train": train, "select": select, "test": test}.items())
    }
    texts = {name: Split([""] * len(s), None, list(s.labels)) for name, s in splits.items()}  # type: ignore[arg-type]
    labels = ("no", "yes") if kind == "classification" else ()
    metric = "accuracy" if kind == "classification" else "pearson"
    source = Source("file", "toy", "0" * 64)
    task = Task("toy", kind, labels, texts, metric, class_weights, source)  # type: ignore[arg-type]
    return EncodedTask(task, splits, 16)  # type: ignore[arg-type]


class Bag(nn.Module):
    """Mean of frozen embeddings, an `adapter` that trains, and a head."""

    def __init__(self, classes: int = 2, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.embedding = nn.Parameter(
            torch.randn(VOCABULARY, width, generator=generator), requires_grad=False
        )
        self.drop = nn.Dropout(0.5)
        self.adapter = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            for parameter in (*self.adapter.parameters(), *self.head.parameters()):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        mask = attention_mask[..., None]
        mean = (self.embedding[input_ids] * mask).sum(1) / mask.sum(1)
        return (self.head(torch.tanh(self.adapter(self.drop(mean)))),)


class FakeHybrid:
    """What the loop needs of a hybrid, over a `Bag`: modules by name, their groups and the head's."""

    def __init__(
        self,
        model: Bag,
        modules: Mapping[str, nn.Module] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.recipe = Recipe.from_dict({"name": "fake", "training": dict(training or {})})
        self.modules: dict[str, nn.Module] = dict(modules or {"adapter": model.adapter})
        self.trained_modules = self.modules
        self.needs_prepare = False
        self.seen: list[dict[str, Tensor]] = []
        self.detached = 0

    def prepare(
        self,
        batches: Callable[[int | None], Iterable[dict[str, Tensor]]],
        objective: Callable[[dict[str, Tensor]], Tensor],
        *,
        kept: Any = None,
    ) -> None:
        self.seen = list(batches(1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        training = self.recipe.training
        groups = {**self.modules, "head": self.model.head}
        rates = {name: training.groups[name].learning_rate for name in training.groups}
        return [
            {
                "name": name,
                "params": _trained_by_groups(module),
                "lr": rates.get(name) or training.learning_rate,
                "weight_decay": training.weight_decay,
            }
            for name, module in groups.items()
        ]

    def counts(self) -> Counts:
        return Counts(1, 1, 1, 1)

    def detach(self) -> None:
        self.detached += 1


def _trained_by_groups(module: nn.Module) -> list[nn.Parameter]:
    own: Any = getattr(module, "parameter_groups", None)
    return list(module.parameters()) if own is None else [p for g in own() for p in g["params"]]


def tiny_bert(num_labels: int = 2, **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=48,
        num_labels=num_labels,
        **options,
    )
    return BertForSequenceClassification(config).eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
