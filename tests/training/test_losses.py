from __future__ import annotations

from typing import Any

import pytest
import torch
from support.training import tiny_bert
from torch import Tensor, nn

from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training.losses import logits_of, slice_rows


class _Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.got: set[str] = set()

    def forward(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor]:
        self.got = {"input_ids", *kwargs}
        return (input_ids.float(),)


def test_labels_never_reach_the_model() -> None:
    model = _Recorder()
    batch = {name: torch.zeros(2, 1) for name in ("input_ids", "attention_mask", "labels", "task_id")}
    logits_of(model, batch)
    assert model.got == {"input_ids", "attention_mask"}


def test_task_id_reaches_a_model_with_modules() -> None:
    bert = tiny_bert()
    batch = {"input_ids": torch.full((2, 4), 9), "task_id": torch.zeros(2, dtype=torch.int64)}
    before = logits_of(bert, batch)
    recipe = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    seen: list[set[str]] = []
    with attach(bert, recipe, seed=0):
        bert.register_forward_pre_hook(lambda _m, _a, kw: seen.append(set(kw)), with_kwargs=True)
        assert torch.allclose(logits_of(bert, batch), before, atol=1e-6)
    assert seen == [{"input_ids", "task_id"}]


def test_tokens_that_the_model_does_not_know_are_a_sentence() -> None:
    bert = tiny_bert()
    table = bert.config.vocab_size
    beyond = {"input_ids": torch.full((2, 4), table)}
    with pytest.raises(UsageError, match=f"gives the token {table}, but .* 0 to {table - 1} alone"):
        logits_of(bert, beyond)
    of_another_type = {
        "input_ids": torch.zeros_like(beyond["input_ids"]),
        "token_type_ids": torch.full((2, 4), 9),
    }
    with pytest.raises(UsageError, match="token type in rows of 4 tokens; lower max_length"):
        logits_of(bert, of_another_type)


def test_an_index_error_of_another_kind_is_let_through() -> None:
    class Wrong(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids[9]

    with pytest.raises(IndexError):
        logits_of(Wrong(), {"input_ids": torch.zeros(2, 1)})


def test_slices_keep_the_batch_s_padding() -> None:
    part = slice_rows({"input_ids": torch.arange(12).view(4, 3), "labels": torch.arange(4)}, 1, 3)
    assert part["input_ids"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert part["labels"].tolist() == [1, 2]
