"""The shortest forward of a language model: what is left out changes neither loss nor gradient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import chats, loss_and_gradients, save_decoder
from support.tiny import randomise
from support.training import VOCABULARY, encoded_split, encoded_task
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
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

CPU = torch.device("cpu")
LORA = {"lora": {"rank": 4, "sites": ["q", "k", "v", "o", "up", "down"]}}
SYSTEM = "be brief one two three four five"
"""Thirteen tokens of every row with the template around it, enough to be computed once."""


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return str(save_decoder(tmp_path / "llama"))


def data_of(backbone: str, folder: Path, system: str = "") -> EncodedTask:
    """Conversations of one turn; with a `system` message all rows begin alike."""
    begin = [{"role": "system", "content": system}] if system else []
    rows = [[*begin, *[m for m in row if m["role"] != "system"][:2]] for row in chats()]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return encode(load_task(str(path)), load_tokenizer(backbone), 48)


def recipe(*items: Any, at: Any = "all", model: list[Any] | None = None) -> Recipe:
    layers = [{"at": at, "attach": list(items)}] if items else []
    return Recipe.from_dict({"name": "r", "layers": layers, "model": model or []})


def hybrid_on(backbone: str, made: Recipe) -> Hybrid:
    hybrid = attach(get_kind("causal_lm").head.load_model(backbone, ()), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def shortest(hybrid: Hybrid, data: EncodedTask) -> Forward:
    found = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
    found.trunk = None  # its states are in fp16
    return found


@contextmanager
def tokens_through(hybrid: Hybrid) -> Iterator[dict[str, int]]:
    """How many tokens the FFN of the first and of the last layer computes."""
    stack = hybrid.injection.layout.stacks[-1]
    found, handles = {"first": 0, "last": 0}, []
    for which, layer in (("first", 0), ("last", len(stack.layers) - 1)):
        (place,) = (p for p in stack.places if p.site.name == "down" and p.site.layer == layer)

        def count(module: Any, args: Any, output: Tensor, which: str = which) -> None:
            found[which] += output.numel() // output.shape[-1]

        handles.append(hybrid.injection.base.get_submodule(place.exit).register_forward_hook(count))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def assert_equal(hybrid: Hybrid, forward: Forward, data: EncodedTask) -> None:
    wanted, gradients = loss_and_gradients(hybrid, Forward(hybrid.model, kind=forward.kind), data)
    found, own = loss_and_gradients(hybrid, forward, data)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert gradients.keys() == own.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, atol=2e-6, rtol=1e-4), name


RECIPES = {
    "lora": recipe(LORA),
    "last layer": recipe(LORA, at="last 1"),
    "adapters and ia3": recipe("serial_adapter", "parallel_adapter", "ia3"),
    "dora and mask": recipe({"dora": {"rank": 2}}, model=["fish_mask"]),
    "prefix": recipe({"p_tuning_v2": {"length": 3, "dropout": 0.0}}),
    "prompts": recipe(LORA, model=[{"prompt_tuning": {"length": 3}}]),
    "deep prompts": recipe(LORA, {"deep_prompt": {"length": 3}}),
    "scores": recipe(model=[{"aprompt": {"length": 0, "kv_length": 2, "qk_width": 3}}]),
}


@pytest.mark.parametrize("system", ["", SYSTEM], ids=["apart", "alike"])
@pytest.mark.parametrize("made", RECIPES.values(), ids=RECIPES)
def test_loss_and_gradients_are_the_same(made: Recipe, system: str, backbone: str, tmp_path: Path) -> None:
    data = data_of(backbone, tmp_path, system)
    with hybrid_on(backbone, made) as hybrid:
        forward = shortest(hybrid, data)
        assert forward.rows is not None
        assert forward.ends
        assert_equal(hybrid, forward, data)
        near = predict(hybrid.model, data.test, forward=forward)
        assert near == pytest.approx(predict(hybrid.model, data.test), rel=1e-4)


def test_beside_a_policy_that_reads_all_tokens(backbone: str, tmp_path: Path) -> None:
    data = data_of(backbone, tmp_path, SYSTEM)
    ipa = {"layers": 1, "width": 8, "heads": 2, "training": "supervised"}
    with hybrid_on(backbone, recipe(LORA, model=[{"ipa": ipa}])) as hybrid:
        forward = shortest(hybrid, data)
        assert forward.rows is not None
        assert not forward.ends
        assert_equal(hybrid, forward, data)


@pytest.mark.parametrize("system", ["", SYSTEM], ids=["apart", "alike"])
def test_less_is_computed(system: str, backbone: str, tmp_path: Path) -> None:
    data = data_of(backbone, tmp_path, system)
    batch = data.train.collate(range(4))
    read = get_kind("causal_lm").head.reads(batch)
    assert read is not None
    most = int(read.sum(dim=1).max())
    width = int(read.any(dim=0).nonzero().max()) + 1
    assert width < batch["input_ids"].shape[1]
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        forward = shortest(hybrid, data)
        assert forward.shares == bool(system)
        length = forward.shared_prefix().length(batch) if system else 0
        with tokens_through(hybrid) as seen:
            forward(batch)
    assert seen["first"] == length + 4 * (width - length)
    assert seen["last"] == 4 * most + bool(system)


def test_in_micro_batches_too(backbone: str, tmp_path: Path) -> None:
    """Rows keep the padding of their batch, which is behind the last token that is read."""
    data = data_of(backbone, tmp_path)
    batch = data.train.collate(range(6))
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        forward = shortest(hybrid, data)
        parts = [forward({k: v[i : i + 2] for k, v in batch.items()}) for i in (0, 2, 4)]
        assert torch.allclose(torch.cat(parts), Forward(hybrid.model, kind=forward.kind)(batch), atol=1e-5)


def test_draws_of_modules_stay_what_they_were(backbone: str, tmp_path: Path) -> None:
    """Dropout draws for every token that a module sees."""
    data = data_of(backbone, tmp_path)
    with hybrid_on(backbone, recipe({"lora": {"rank": 4, "dropout": 0.5, "sites": ["q", "o"]}})) as hybrid:
        forward = shortest(hybrid, data)
        assert not forward.ends
        assert forward.rows is not None
        hybrid.root.train()
        torch.manual_seed(1)
        wanted, _ = loss_and_gradients(hybrid, Forward(hybrid.model, kind=forward.kind), data)
        torch.manual_seed(1)
        found, _ = loss_and_gradients(hybrid, forward, data)
        assert found == pytest.approx(wanted, rel=1e-5)


def test_what_looks_at_all_positions_gets_them(backbone: str, tmp_path: Path) -> None:
    data = data_of(backbone, tmp_path)
    with hybrid_on(backbone, recipe({"gate": ["serial_adapter", LORA]}, at="last 1")) as hybrid:
        forward = shortest(hybrid, data)
        assert forward.rows is None
        assert not forward.ends, "a gate averages over the positions"
        assert_equal(hybrid, forward, data)


def test_prompts_behind_the_text_stay_behind_all_of_it(backbone: str, tmp_path: Path) -> None:
    slots = [{"length": 2, "anchor": "end", "offset": 1}]
    data = data_of(backbone, tmp_path)
    with hybrid_on(backbone, recipe(model=[{"p_tuning": {"length": 2, "slots": slots}}])) as hybrid:
        forward = shortest(hybrid, data)
        assert forward.rows is not None, "they move the tokens that are read"
        assert not forward.ends
        assert_equal(hybrid, forward, data)


def test_where_all_tokens_are_learnt_there_is_nothing_to_leave_out(backbone: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [[m["content"] for m in row] for row in chats()]
    path.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in rows))
    data = encode(load_task(str(path), kind="causal_lm"), load_tokenizer(backbone), 48)
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        forward = shortest(hybrid, data)
        assert forward.rows is None
        assert_equal(hybrid, forward, data)


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def other_models() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    small = {"vocab_size": 40, "max_position_embeddings": 64}
    return [
        GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=3, n_head=4)),
        MistralForCausalLM(MistralConfig(**SIZES, **small, num_key_value_heads=2, sliding_window=5)),
    ]


@pytest.mark.parametrize("model", other_models(), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_families(model: PreTrainedModel, attention: str, backbone: str, tmp_path: Path) -> None:
    """A fused projection, and a window shorter than a row."""
    model.config._attn_implementation = attention
    data = data_of(backbone, tmp_path, SYSTEM)
    with attach(model.eval(), recipe("serial_adapter", "ia3"), seed=0) as hybrid:
        randomise(hybrid.root)
        forward = shortest(hybrid, data)
        assert forward.rows is not None
        assert forward.ends
        assert_equal(hybrid, forward, data)


def test_rows_of_one_token_do_not_tell_which_one_the_head_reads() -> None:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=2, pad_token_id=0
    )
    data, rows = encoded_task(), encoded_split(20, 0)
    short = replace(rows, ids=rows.ids[rows.offsets[:-1]], offsets=np.arange(21))
    data = replace(data, splits={**data.splits, "train": short})
    with attach(GPT2ForSequenceClassification(config).eval(), recipe(LORA), seed=0) as hybrid:
        randomise(hybrid.model)
        found = shortest_forward(hybrid, data, TrainingPlan(steps=1, device="cpu"), dropout=False)
        expected = predict(hybrid.model, data.select)
        np.testing.assert_allclose(predict(hybrid.model, data.select, forward=found), expected, atol=1e-3)


def test_trying_leaves_the_generators_of_the_models_device_alone(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.device] = []

    def keep(device: torch.device) -> AbstractContextManager[None]:
        kept.append(device)
        return nullcontext()

    monkeypatch.setattr("autopeft.training.forward.generators_kept", keep)
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        data = data_of(backbone, tmp_path)
        shortest(hybrid, data)
        sharing_forward(hybrid, data.train, data.task.task_kind)
    assert kept == [CPU, CPU]
