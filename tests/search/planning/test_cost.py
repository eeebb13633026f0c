from __future__ import annotations

import pytest
from support.searching import EFFORT
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.search.planning.cost import Work, estimate

MINILM = spec_of(
    BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
)


def test_a_forward_pass_is_two_operations_for_each_weight_and_token() -> None:
    work = Work.of(MINILM, tokens=27)
    layers = 6 * (4 * 384 * 384 + 2 * 384 * 1536) + 384 * 384
    assert work.weights == layers
    assert work.forward == pytest.approx(2 * 27 * layers, rel=0.02)
    assert work.step == 2 * work.forward


def test_more_workers_take_less_time_and_more_memory() -> None:
    options = {"baselines": (), "batch_size": 32, "select_rows": 500, "test_rows": 1000, "speed": 1e11}
    one = estimate(Work.of(MINILM, 27), EFFORT, workers=1, **options)  # type: ignore[arg-type]
    two = estimate(Work.of(MINILM, 27), EFFORT, workers=2, **options)  # type: ignore[arg-type]
    assert two.seconds < one.seconds
    assert two.memory == 2 * one.memory
    assert two.trial_seconds == one.trial_seconds
