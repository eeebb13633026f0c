from __future__ import annotations

from typing import Any

import torch
from support.training import tiny_bert
from torch import Tensor, nn

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


def test_slices_keep_the_batch_s_padding() -> None:
    part = slice_rows({"input_ids": torch.arange(12).view(4, 3), "labels": torch.arange(4)}, 1, 3)
    assert part["input_ids"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert part["labels"].tolist() == [1, 2]
