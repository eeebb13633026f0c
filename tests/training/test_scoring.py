from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.training import Bag, encoded_split, encoded_task, tiny_bert

from autopeft.errors import TaskError, UsageError
from autopeft.training.errors import OutOfMemory
from autopeft.training.scoring import evaluate, predict, scores


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_come_back_in_the_split_s_order(batch_size: int) -> None:
    bert, split = tiny_bert(), encoded_split(11, seed=2)
    one_by_one = []
    with torch.no_grad():
        for row in range(len(split)):
            batch = split.collate([row])
            one_by_one.append(bert(batch["input_ids"], batch["attention_mask"]).logits.numpy())
    found = predict(bert, split, batch_size=batch_size)
    assert found.dtype == np.float32
    assert np.allclose(found, np.concatenate(one_by_one), atol=1e-6)


def test_mode_and_gradients_are_as_before() -> None:
    bert, split = tiny_bert(), encoded_split(5, seed=2)
    bert.train()
    bert.bert.pooler.eval()
    state = torch.get_rng_state()
    flags = [m.training for m in bert.modules()]
    first = predict(bert, split)
    assert np.array_equal(first, predict(bert, split)), "dropout must be off"
    assert [m.training for m in bert.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_scores_are_those_of_the_predictions() -> None:
    bag, data = Bag(), encoded_task()
    right = predict(bag, data.test).argmax(1) == data.test.labels
    assert evaluate(bag, data.test, "accuracy") == pytest.approx(right.mean())
    both = scores(bag, data.test, ["accuracy", "matthews"])
    assert list(both) == ["accuracy", "matthews"]
    assert both["accuracy"] == pytest.approx(right.mean())


def test_what_cannot_be_scored_is_refused() -> None:
    bag, split = Bag(), encoded_split(4, seed=0)
    with pytest.raises(UsageError, match="no labels"):
        evaluate(bag, replace(split, labels=None), "accuracy")
    with pytest.raises(TaskError, match="accuracy"):
        evaluate(bag, split, "acuracy")
    with pytest.raises(UsageError, match="no rows"):
        predict(bag, replace(split, offsets=np.zeros(1, dtype=np.int64)))


def test_where_memory_is_full_fewer_rows_go_through_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bag, split, seen = Bag().train(), encoded_split(11, seed=0), list[int]()
    expected, forward = predict(bag, split), bag.forward

    def small(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("not enough")
        return forward(input_ids, *args, **kwargs)

    monkeypatch.setattr(bag, "forward", small)
    most = 3
    np.testing.assert_allclose(predict(bag, split), expected, rtol=1e-5)
    assert seen[:2] == [11, 5]
    assert seen[2:] == [2, 2, 2, 2, 2, 1]
    most = 0
    with pytest.raises(OutOfMemory, match="even with single rows; lower `max_length`"):
        predict(bag, split, batch_size=8)
    assert bag.training
