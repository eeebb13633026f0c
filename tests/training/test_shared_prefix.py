"""What all rows begin with is computed once: equal loss and gradients; refused where they would differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.language import chats, count_tokens, loss_and_gradients, save_decoder
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
from autopeft.tasks import EncodedTask, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan, predict
from autopeft.training.forward import Forward, sharing_forward, shortest_forward
from autopeft.training.shared_prefix import SharedPrefix, Unshareable

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return str(save_decoder(tmp_path / "llama"))


def data_of(backbone: str, folder: Path, system: str) -> EncodedTask:
    rows = [
        [{"role": "system", "content": system}, *(m for m in row if m["role"] != "system")] for row in chats()
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return encode(load_task(str(path)), load_tokenizer(backbone), 48)


@pytest.fixture
def data(backbone: str, tmp_path: Path) -> EncodedTask:
    """Thirteen tokens at the front of every row are the same."""
    return data_of(backbone, tmp_path, "be brief one two three four five")


def recipe(*items: Any, at: Any = "all", model: list[Any] | None = None) -> Recipe:
    layers = [{"at": at, "attach": list(items)}] if items else []
    return Recipe.from_dict({"name": "r", "layers": layers, "model": model or []})


def hybrid_on(backbone: str, made: Recipe) -> Hybrid:
    hybrid = attach(get_kind("causal_lm").head.load_model(backbone, ()), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def shortest(hybrid: Hybrid, data: EncodedTask) -> Forward:
    return shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward of a Llama's embeddings gets."""
    return count_tokens(monkeypatch)


def test_while_all_of_the_backbone_is_searched_nothing_is_shared(
    backbone: str, data: EncodedTask, tokens: list[int]
) -> None:
    """Its weights are made anew in each forward, and would be kept twice."""
    with hybrid_on(backbone, recipe(model=[{"lt_sft": {"keep": 50}}])) as hybrid:
        forward, module = shortest(hybrid, data), cast(Any, hybrid.modules["lt_sft"])
        batch = data.train.collate(range(4), device=CPU)
        assert forward.shares

        def forwards() -> int:
            tokens.clear()
            forward(batch)
            return len(tokens)

        assert forwards() == 2
        module.begin_search()
        assert forwards() == 1
        with torch.no_grad():
            assert forwards() == 2, "nothing is kept then"
        module.end_search()
        assert forwards() == 2


@pytest.mark.parametrize(
    "made",
    [
        recipe(LORA),
        recipe("serial_adapter", "ia3"),
        recipe({"krona": {"sites": ["up", "down"]}}, at="1-2", model=["fish_mask"]),
        recipe("dora"),
        recipe({"p_tuning_v2": {"length": 3, "dropout": 0.0}}),
        recipe(model=[{"aprompt": {"length": 0, "kv_length": 2, "qk_width": 3}}]),
    ],
    ids=["lora", "adapter and ia3", "krona and mask", "dora", "prefix", "scores"],
)
def test_loss_and_gradients_are_the_same(
    made: Recipe, backbone: str, data: EncodedTask, tokens: list[int]
) -> None:
    with hybrid_on(backbone, made) as hybrid:
        forward = shortest(hybrid, data)
        forward.trunk = None
        assert forward.shares
        wanted, gradients = loss_and_gradients(hybrid, Forward(hybrid.model, kind=forward.kind), data)
        tokens.clear()
        found, own = loss_and_gradients(hybrid, forward, data)
        assert tokens[0] == 13
        assert tokens[1] % len(data.select) == 0
        assert found == pytest.approx(wanted, rel=1e-6)
        assert gradients.keys() == own.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(own[name], gradient, atol=1e-6, rtol=1e-4), name
        near = predict(hybrid.model, data.test, forward=forward)
        assert np.allclose(near, predict(hybrid.model, data.test), rtol=1e-5)


def test_a_backbone_as_it_is_shares_too(backbone: str, data: EncodedTask, tokens: list[int]) -> None:
    with hybrid_on(backbone, recipe()) as hybrid:
        forward = sharing_forward(hybrid, data.test, get_kind("causal_lm"))
        assert forward.trunk is None
        tokens.clear()
        near = predict(hybrid.model, data.test, forward=forward)
        assert tokens[0] == 13, "once for the batch"
        assert np.allclose(near, predict(hybrid.model, data.test), rtol=1e-5)


def test_above_the_cached_trunk(backbone: str, data: EncodedTask) -> None:
    with hybrid_on(backbone, recipe(LORA, at=[2])) as hybrid:
        forward = shortest(hybrid, data)
        assert forward.shares
        assert forward.trunk is not None
        wanted, gradients = loss_and_gradients(hybrid, Forward(hybrid.model, kind=forward.kind), data)
        found, own = loss_and_gradients(hybrid, forward, data)
        assert found == pytest.approx(wanted, rel=1e-3), "states are kept in fp16"
        for name, gradient in gradients.items():
            assert torch.allclose(own[name], gradient, atol=2e-3 * float(gradient.abs().max())), name


def test_the_trunk_reads_once_what_all_rows_of_a_split_begin_with(
    backbone: str, data: EncodedTask, tokens: list[int]
) -> None:
    rows = np.arange(len(data.train))
    with hybrid_on(backbone, recipe({"gate": [LORA, "serial_adapter"]}, at=[2])) as hybrid:
        forward = shortest(hybrid, data)
        trunk = forward.trunk
        assert trunk is not None
        assert trunk.shares
        assert not forward.shares, "though what lies above reads each row whole"
        tokens.clear()
        found = trunk.states(data.train, rows, CPU)
        assert sum(tokens) == 13 + int(data.train.lengths.sum()) - 13 * len(rows)
        plain = trunk.compute(data.train.collate(rows))
    assert found is not None
    there = torch.arange(found["decoder"].shape[1]) < torch.tensor(data.train.lengths)[:, None]
    assert torch.allclose(found["decoder"][there], plain["decoder"][there], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "made",
    [
        recipe({"lora": {"rank": 4, "dropout": 0.5}}),
        recipe({"gate": [LORA, "serial_adapter"]}),
        recipe(model=[{"prompt_tuning": {"length": 4}}]),
        recipe({"apt": {"length": 3, "dropout": 0.0}}),
    ],
    ids=["dropout", "gate", "prompts", "of texts"],
)
def test_what_would_differ_is_not_shared(made: Recipe, backbone: str, data: EncodedTask) -> None:
    with hybrid_on(backbone, made) as hybrid:
        assert not shortest(hybrid, data).shares


def test_a_copy_that_is_drawn_once_for_a_forward_is_not_drawn_for_each_half(
    backbone: str, data: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the halves that are tried have, by chance, the same copy."""
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(1))
    made = recipe({"adamix": {"children": [LORA], "copies": 2}})
    with hybrid_on(backbone, made) as hybrid:
        assert not shortest(hybrid, data).shares
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        assert shortest(hybrid, data).shares


@pytest.mark.parametrize(("dropout", "shares"), [(0.001, False), (0.0, True)])
def test_in_16_bits_draws_are_not_taken_for_rounding(
    dropout: float, shares: bool, backbone: str, data: EncodedTask
) -> None:
    model = get_kind("causal_lm").head.load_model(backbone, (), dtype=torch.bfloat16)
    with attach(model, recipe({"lora": {"rank": 4, "dropout": dropout}}), seed=0) as hybrid:
        assert shortest(hybrid, data).shares == shares


def test_trying_leaves_hybrid_and_draws_as_they_were(backbone: str, data: EncodedTask) -> None:
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        before = {n: t.clone() for n, t in hybrid.root.state_dict().items()}
        torch.manual_seed(5)
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert shortest(hybrid, data).shares
        assert torch.equal(torch.rand(3), drawn)
        assert all(torch.equal(t, before[n]) for n, t in hybrid.root.state_dict().items())
        assert not any(module.training for module in hybrid.model.modules())


def test_rows_with_nothing_in_common_are_not_shared(backbone: str, tmp_path: Path) -> None:
    data = data_of(backbone, tmp_path, "be")
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        assert not shortest(hybrid, data).shares


def batch_of(rows: list[list[int]], learnt_from: int) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = torch.where(mask == 1, ids, -100)
    labels[:, :learnt_from] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


FRONT = list(range(4, 16))
ROWS = [[*FRONT, 3, 5, 7], [*FRONT, 4, 6, 8, 10, 12], [*FRONT, 5, 5]]


def test_how_much_is_shared() -> None:
    shared = SharedPrefix(torch.nn.Identity(), lambda batch, states: torch.zeros(0), 0)
    assert shared.common(batch_of(ROWS, 14)) == 12
    assert shared.common(batch_of(ROWS, 10)) == 9, "the token before a learnt one is read in each row"
    assert shared.common(batch_of([FRONT, FRONT], 12)) == 11, "something has to follow"
    assert shared.common(batch_of([[9, *row] for row in ROWS[:1]] + ROWS, 14)) == 0
    padded = batch_of(ROWS, 14)
    padded["attention_mask"][0, 0] = 0
    assert shared.common(padded) == 0
    assert shared.length(batch_of(ROWS[:1], 14)) == 0, "one row shares nothing"
    assert shared.length(batch_of(ROWS, 14)) == 12
    assert shared.length(batch_of([[*FRONT, *range(90)], [*FRONT, *range(1, 91)]], 14)) == 0, "too little"


def other_models() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    small = {"vocab_size": 100, "max_position_embeddings": 64}
    return [
        GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=3, n_head=4)),
        GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **small)),
        MistralForCausalLM(MistralConfig(**SIZES, **small, num_key_value_heads=2, sliding_window=5)),
    ]


@pytest.mark.parametrize("model", other_models(), ids=lambda m: type(m).__name__)
def test_other_families(model: PreTrainedModel) -> None:
    """A window shorter than what is shared too."""
    model.eval()
    randomise(model, std=0.2)
    batch = batch_of(ROWS, 14)
    forward = Forward(model, kind=get_kind("causal_lm"))
    wanted = forward(batch)
    assert len(wanted) == int((batch["labels"] != -100).sum())
    assert torch.allclose(forward.shared_prefix()(batch, {}, 12), wanted, atol=1e-5)


def test_a_model_without_a_cache_says_so() -> None:
    class Plain(torch.nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return input_ids

    with pytest.raises(Unshareable):
        Forward(Plain()).shared_prefix()(batch_of(ROWS, 14), {}, 12)
