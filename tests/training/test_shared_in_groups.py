"""What the choices of a question begin with is computed once: the same likelihoods, of fewer tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import count_tokens, save_decoder
from support.tiny import randomise
from support.training import LORA
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from autopeft.assets import load_tokenizer
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks import load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.choices import CHOICE_OF, EncodedChoices
from autopeft.training import TrainingPlan, predict
from autopeft.training.forward import Forward, sharing_forward, shortest_forward
from autopeft.training.shared_prefix import SharedInGroups

KIND = get_kind("multiple_choice")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SMALL = {**SIZES, "vocab_size": 100, "max_position_embeddings": 64}


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward gets."""
    return count_tokens(monkeypatch)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Questions of 9 to 30 tokens that differ at the front, with two to four choices of one to four."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    words = ("one", "two", "three", "four", "five")
    rows = [
        {
            "question": " ".join([words[i % 5], *[words[(i // 5) % 5]] * (8 + i % 22)]),
            "choices": [" ".join([words[(i + k) % 5]] * (1 + (i + k) % 4)) for k in range(2 + i % 3)],
            "answer": i % 2,
        }
        for i in range(120)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_decoder(tmp_path / "llama", template=None)
    return encode(load_task(str(path)), load_tokenizer(str(tmp_path / "llama")), 60)


def hybrid_of(folder: Path, *items: Any, model: tuple[Any, ...] = ()) -> Hybrid:
    layers = [{"attach": list(items)}] if items else []
    made = Recipe.from_dict({"name": "r", "layers": layers, "model": list(model)})
    hybrid = attach(KIND.head.load_model(str(folder / "llama"), ()), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def same(found: Any, wanted: Any) -> bool:
    return all(np.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("items", [(LORA,), ("serial_adapter", "ia3"), ({"prefix_tuning": {"length": 3}},)])
def test_likelihoods_are_the_same_of_fewer_tokens(
    items: tuple[Any, ...], data: Any, tmp_path: Path, tokens: list[int]
) -> None:
    hybrid = hybrid_of(tmp_path, *items)
    split = data.splits["select"]
    forwards = [
        sharing_forward(hybrid, split, KIND),
        shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False),
    ]
    tokens.clear()
    wanted = predict(hybrid.model, split, forward=Forward(hybrid.model, kind=KIND), batch_size=12)
    plain = sum(tokens)
    for forward in forwards:
        tokens.clear()
        assert same(predict(hybrid.model, split, forward=forward, batch_size=12), wanted)
        first = sum(tokens)
        tokens.clear()
        assert same(predict(hybrid.model, split, forward=forward, batch_size=12), wanted)
        assert sum(tokens) < 0.65 * plain
        assert sum(tokens) < first, "the first batch is computed by both ways, and not again"


@pytest.mark.parametrize("items", [({"prompt_tuning": {"length": 3}},)])
def test_prompts_are_computed_as_ever(items: tuple[Any, ...], data: Any, tmp_path: Path) -> None:
    hybrid = hybrid_of(tmp_path, model=items)
    assert not sharing_forward(hybrid, data.splits["select"], KIND).groups


def test_gradients_are_not_asked_of_it(data: Any, tmp_path: Path, tokens: list[int]) -> None:
    hybrid = hybrid_of(tmp_path, LORA)
    forward = sharing_forward(hybrid, data.splits["select"], KIND)
    batch = data.splits["select"].collate(range(3))
    tokens.clear()
    assert forward(batch).requires_grad
    assert tokens == [batch["input_ids"].numel()]


def batch_of(data: Any, rows: range) -> dict[str, Tensor]:
    split = data.splits["select"]
    assert isinstance(split, EncodedChoices)
    return split.collate(rows)


def models() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    return [
        GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=3, n_head=4)),
        GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
        MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None)),
    ]


@pytest.mark.parametrize("model", models(), ids=lambda m: type(m).__name__)
@torch.no_grad()
def test_families(model: PreTrainedModel, data: Any) -> None:
    randomise(model.eval(), std=0.2)
    batch = batch_of(data, range(8))
    forward = Forward(model, kind=KIND)
    wanted = forward(batch)
    shared = SharedInGroups(model, forward.logits, 0)
    groups = batch[CHOICE_OF][:, 0]
    lengths = shared.lengths(batch, groups)
    assert lengths is not None
    assert len(lengths.unique()) > 2, "questions differ in length"
    assert torch.allclose(shared.run(batch, groups, lengths), wanted, atol=1e-5)


@torch.no_grad()
def test_where_logits_differ_it_is_given_up(data: Any, tokens: list[int]) -> None:
    """A window counts places in the cache, and some hold no token."""
    model = MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=6)).eval()
    randomise(model, std=0.2)
    forward, plain = Forward(model, kind=KIND), Forward(model, kind=KIND)
    forward.groups = True
    first, second = batch_of(data, range(6)), batch_of(data, range(6, 12))
    assert torch.equal(forward(first), plain(first))
    tokens.clear()
    assert torch.equal(forward(second), plain(second))
    assert tokens == [second["input_ids"].numel()] * 2


def test_how_much_a_group_begins_with() -> None:
    rows = [[1, 2, 3, 4, 9], [1, 2, 3, 5], [1, 2, 3, 4, 8, 7], [6, 2, 3, 4], [6, 2, 3, 4, 5, 5]]
    ids = torch.tensor([[*row, *[0] * (6 - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (6 - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, learnt in zip(labels, (4, 3, 4, 3, 4), strict=True):
        row[learnt] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    shared = SharedInGroups(torch.nn.Identity(), lambda batch, states: torch.zeros(0), 0)
    groups = torch.tensor([0, 0, 0, 1, 1])
    # Of the first group 3 tokens are alike, of which the last predicts a learnt one.
    assert shared.lengths(batch, groups).tolist() == [2, 2]  # type: ignore[union-attr]
    assert shared.lengths(batch, torch.arange(5)) is None, "alone no row saves anything"
    labels[1], labels[3] = labels[0], labels[4]
    assert shared.lengths(batch, groups).tolist() == [3, 3]  # type: ignore[union-attr]
    ids[4, 0] = 9
    assert shared.lengths(batch, groups) is None, "a row of the cache without a token has no attention"
