"""Prompts of what the bare backbone makes of a text: short cuts, and others beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import randomise, tiny_model
from support.training import encoded_task
from transformers import LlamaConfig, LlamaForSequenceClassification

from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, predict
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.loop import train

IDPG = {"idpg": {"sites": ["embeddings"], "length": 2, "phm_dim": 2, "bottleneck": 6, "dropout": 0.0}}


def test_the_pre_pass_is_not_narrowed_to_what_the_head_reads() -> None:
    """A method that reads all that the bare backbone makes of the text, while the last layer of its own
    forward is computed for one position."""
    torch.manual_seed(0)
    data = encoded_task()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = LlamaConfig(**sizes, vocab_size=200, pad_token_id=0, num_labels=2)
    model = LlamaForSequenceClassification(config).eval()
    with attach(model, Recipe.from_dict({"name": "r", "model": [IDPG]}), seed=0) as hybrid:
        randomise(hybrid.root)
        forward = shortest_forward(hybrid, data, TrainingPlan(steps=1, device="cpu"), dropout=False)
        assert forward.rows is not None, "the last layer is narrowed"
        plain = predict(model, data.test, forward=Forward(model, kind=data.task.task_kind))
        assert np.allclose(predict(model, data.test, forward=forward), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "item", [{**IDPG, "idpg": {**IDPG["idpg"], "sites": None}}, {"infoprompt": {"length": 2, "latent": 4}}]
)
def test_the_head_s_position_is_found_where_the_rows_stand_behind_the_first_token(
    item: dict[str, Any],
) -> None:
    """In further forwards without the rows too."""
    data, losses = encoded_task(), []
    for shortcuts in (True, False):
        plan = TrainingPlan(steps=4, batch_size=8, device="cpu", shortcuts=shortcuts)
        with attach(tiny_model("bert"), Recipe.from_dict({"name": "r", "model": [item]}), seed=0) as hybrid:
            randomise(hybrid.root)
            assert (shortest_forward(hybrid, data, plan, dropout=False).rows is not None) == shortcuts
            losses.append(train(hybrid, data, plan).losses)
    assert np.allclose(*losses, rtol=1e-5)


def test_a_prompt_without_rows_stands_aside_in_a_forward_of_others() -> None:
    """InfoPrompt's further forward is one without its own rows, while those of the other stay."""
    items = [{"prompt_tuning": {"length": 3}}, {"infoprompt": {"length": 2, "latent": 4}}]
    with attach(tiny_model("bert"), Recipe.from_dict({"name": "r", "model": items}), seed=0) as hybrid:
        result = train(hybrid, encoded_task(), TrainingPlan(steps=3, batch_size=8, device="cpu"))
    assert np.isfinite(result.losses).all()
