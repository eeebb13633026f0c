from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.saved_model import save_backbone
from support.tiny import tiny_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

import autopeft
from autopeft.assets import keep_model, load_config, load_tokenizer, resolve_model
from autopeft.errors import AssetError, UsageError
from autopeft.recipe import Recipe


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    folder = save_backbone(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder)


def _state(model: Any) -> tuple[Any, ...]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return tensors, copy.deepcopy(vars(model.config)), model.training, list(model._modules)


def test_the_model_is_saved_once_and_left_bit_for_bit(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    model.train()
    tensors, config, training, modules = _state(model)
    folder = keep_model(model, tokenizer)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert keep_model(model, tokenizer) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    now, config_now, training_now, modules_now = _state(model)
    assert config_now == config
    assert (training_now, modules_now) == (training, modules)
    assert now.keys() == tensors.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in tensors.items())
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items() if name in saved)
    assert not list(folder.parent.glob(".*"))


def test_what_is_saved_loads_by_name(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    source = resolve_model(str(keep_model(model, tokenizer)))
    assert source.sha256 is not None
    assert load_config(source).hidden_size == model.config.hidden_size
    assert load_tokenizer(source)("good film")["input_ids"] == tokenizer("good film")["input_ids"]


def test_other_weights_and_other_tokens_are_another_folder(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    first = keep_model(model, tokenizer)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3, 3] += 1e-3
    second = keep_model(model, tokenizer)
    tokenizer.add_tokens(["splendid"])
    assert len({first, second, keep_model(model, tokenizer)}) == 3


def test_a_tokenizer_of_several_chat_templates(pair: tuple[Any, Any]) -> None:
    """All but one lie in a folder of their own."""
    model, tokenizer = pair
    tokenizer.chat_template = {"default": "plain", "tool_use": "with tools"}
    folder = keep_model(model, tokenizer)
    assert keep_model(model, tokenizer) == folder
    assert load_tokenizer(resolve_model(str(folder))).chat_template == tokenizer.chat_template
    tokenizer.chat_template["tool_use"] = "with other tools"
    assert keep_model(model, tokenizer) != folder


def test_other_ends_of_answers_are_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model, tokenizer = tiny_model("llama"), AutoTokenizer.from_pretrained(save_backbone(tmp_path / "bert"))
    kept = []
    for ends in (2, [7, 9]):
        model.generation_config.eos_token_id = ends
        kept.append(keep_model(model, tokenizer))
        assert GenerationConfig.from_pretrained(kept[-1]).eos_token_id == ends
    assert kept[0] != kept[1]
    assert keep_model(model, tokenizer) == kept[1]


def test_a_damaged_folder_is_written_again(pair: tuple[Any, Any]) -> None:
    folder = keep_model(*pair)
    (folder / "model.safetensors").unlink()
    assert (keep_model(*pair) / "model.safetensors").is_file()


def test_a_model_in_half_precision_stays_so(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    folder = keep_model(model.bfloat16(), tokenizer)
    assert AutoModel.from_pretrained(folder, dtype="auto").dtype is torch.bfloat16


def test_an_attached_hybrid_is_refused(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    with (
        autopeft.attach(model, Recipe.from_dict({"layers": [{"attach": [{"lora": {"rank": 2}}]}]})),
        pytest.raises(UsageError, match=r"detach\(\)"),
    ):
        keep_model(model, tokenizer)


def test_weights_that_are_not_in_memory_are_refused(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    with pytest.raises(UsageError, match="not in memory"):
        keep_model(model.to("meta"), tokenizer)


def test_a_cache_without_room_is_an_error(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.assets.live._LIMIT", 10)
    with pytest.raises(AssetError, match="do not fit"):
        keep_model(*pair)
