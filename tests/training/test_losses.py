from __future__ import annotations

from typing import Any

import pytest
import torch
from support.training import tiny_bert
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training.losses import TaskLoss, logits_of, slice_rows

LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.25], [-3.0, 1.0], [0.0, 4.0], [1.0, 1.5]])
LABELS = torch.tensor([0, 1, 1, 0, 1])


@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_cross_entropy_is_torch_s_own(weights: list[float] | None) -> None:
    expected = F.cross_entropy(LOGITS, LABELS, weight=None if weights is None else torch.tensor(weights))
    assert torch.allclose(TaskLoss("classification", weights).mean(LOGITS, LABELS), expected)


@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_parts_add_up_to_the_batch(weights: list[float] | None) -> None:
    loss = TaskLoss("classification", weights)
    parts = [loss.total(LOGITS[a:b], LABELS[a:b]) for a, b in ((0, 2), (2, 3), (3, 5))]
    assert float(sum(parts)) / loss.weight(LABELS) == pytest.approx(
        float(loss.mean(LOGITS, LABELS)), rel=1e-6
    )


def test_regression_is_the_mean_squared_error() -> None:
    loss = TaskLoss("regression", None)
    assert float(loss.mean(torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 3.0]))) == pytest.approx(2.5)


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
