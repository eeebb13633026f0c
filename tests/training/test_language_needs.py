"""Methods that measure on rows, with language models: they measure the loss of answers, or are refused before
a step is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import save_decoder, word_tokenizer, write_chats
from transformers import AutoModelForCausalLM

from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks import load_task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, train
from autopeft.training.calibration import prepare

PLAN = TrainingPlan(steps=2, batch_size=4, device="cpu", shortcuts=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("language")
    save_decoder(found / "llama")
    write_chats(found / "chats.jsonl")
    return found


@pytest.fixture(scope="module")
def data(folder: Path) -> EncodedTask:
    return encode(load_task(str(folder / "chats.jsonl")), word_tokenizer(), 48)


def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "llama").eval()


def recipe(**entry: Any) -> Recipe:
    level = "layers" if "laplace_lora" in entry else "model"
    attached: list[Any] = [entry] if level == "model" else [{"attach": [entry]}]
    return Recipe.from_dict({"name": "r", level: attached})


def test_fisher_information_of_a_language_model_is_that_of_each_answer_s_loss(
    folder: Path, data: EncodedTask
) -> None:
    hybrid = attach(model(folder), recipe(fish_mask={"keep": 40, "samples": 5}))
    prepare(hybrid, data, PLAN)
    found = set(hybrid.modules["fish_mask"].entries.index.tolist())
    hybrid.detach()
    plain = model(folder)
    names = [t.name for t in attach(model(folder), recipe(fish_mask={"keep": 40})).spec.tensors]
    base = dict(plain.model.named_parameters())
    scores = [torch.zeros_like(base[name]) for name in names]
    for row in np.random.default_rng(PLAN.seed).permutation(len(data.train))[:5]:
        plain.zero_grad()
        plain(**data.train.collate([int(row)])).loss.backward()  # transformers' own loss, labels and all
        for score, name in zip(scores, names, strict=True):
            score += base[name].grad.square()
    flat = torch.cat([score.flatten() for score in scores])
    assert found == set(flat.topk(40).indices.tolist())


def test_the_hardest_rows_of_a_language_model_have_the_largest_mean_over_learnt_tokens(
    folder: Path, data: EncodedTask
) -> None:
    hybrid = attach(model(folder), recipe(fish_dip={"keep": 40, "least": 4, "most": 4}))
    prepare(hybrid, data, PLAN)
    module: Any = hybrid.modules["fish_dip"]
    found = set(module.entries.held.tolist())
    names = [t.name for t in hybrid.spec.tensors]
    hybrid.detach()
    plain = model(folder)
    base = dict(plain.model.named_parameters())
    rows = [data.train.collate([row]) for row in range(len(data.train))]
    with torch.no_grad():
        losses = torch.stack([plain(**row).loss for row in rows])  # transformers' own
    scores = torch.zeros(sum(base[name].numel() for name in names))
    for row in losses.argsort(descending=True)[:4].tolist():
        plain.zero_grad()
        plain(**rows[row]).loss.backward()
        scores += torch.cat([base[name].grad.flatten() for name in names]).square()
    assert found == set(scores.topk(40).indices.tolist())


@pytest.mark.parametrize(
    "entry",
    [{"fish_mask": {"keep": 40, "mode": "expect"}}, {"laplace_lora": {"rank": 1}}],
    ids=["fish_mask", "laplace_lora"],
)
def test_what_needs_classes_is_refused_before_anything_is_computed(
    folder: Path, data: EncodedTask, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = model(folder)
    hybrid = attach(live, recipe(**entry))
    monkeypatch.setattr(type(live), "forward", None)
    steps: list[int] = []
    (name,) = entry
    with pytest.raises(CompositionError, match=rf"{name} needs .* causal_lm .*`autopeft methods {name}`"):
        train(hybrid, data, PLAN, on_step=lambda step, loss: steps.append(step))
    assert steps == []


@pytest.mark.parametrize(
    "entry",
    [
        {"fish_mask": {"keep": 40, "samples": 3}},
        {"child_tuning_d": {}},
        {"sam": {"batches": 3}},
        {"sam": {"batches": 3, "score": "g2_over_h"}},
        {"fish_dip": {"keep": 40, "every": 2}},
        {"laplace_lora": {"rank": 1, "samples": 0}},
    ],
    ids=["fish_mask", "child_tuning_d", "sam", "sam-curvature", "fish_dip", "laplace_lora"],
)
def test_what_does_without_trains(folder: Path, data: EncodedTask, entry: dict[str, Any]) -> None:
    assert train(attach(model(folder), recipe(**entry)), data, PLAN).steps == 2
