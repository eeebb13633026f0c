"""Folders of models: damage, adapters, and weights that a class names otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.saved_model import save_backbone
from support.tiny import tiny_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    LlamaForQuestionAnswering,
)

from autopeft.assets import load_config, load_model, load_tokenizer, resolve_model
from autopeft.assets.heads import drawn
from autopeft.errors import UsageError


def config_of(folder: Path, **changes: Any) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **changes}))


def text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def of_dtype(name: str) -> Callable[[Path], object]:
    """The first tensor has this dtype in the header: the same bits are so many more numbers."""

    def write(folder: Path) -> None:
        file = folder / "model.safetensors"
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        first = next(k for k in header if k != "__metadata__")
        header[first]["dtype"] = name
        header[first]["shape"][-1] = header[first]["shape"][-1] * 32 // int(name[1])
        told = json.dumps(header).encode()
        file.write_bytes(len(told).to_bytes(8, "little") + told + raw[8 + length :])

    return write


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut": (cut, "other bytes than there are"),
    "weights empty": (text("model.safetensors", b""), "no safetensors file"),
    "weights in F4": (of_dtype("F4"), "dtype 'F4'"),
    "weights in F6": (of_dtype("F6_E3M2"), "dtype 'F6_E3M2'"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, case: str) -> None:
    damage, said = DAMAGE[case]
    save_backbone(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        resolve_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"null", b"[1]", b"", b"\xff\xfe\x00", b'"text"'])
def test_a_damaged_configuration_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    save_backbone(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=f"No usable configuration in '{tmp_path}'"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "two"},
        {"hidden_size": -1},
        {"hidden_size": None},
        {"hidden_act": "eval"},
        {"vocab_size": [1]},
        {"model_type": {}},
        {"model_type": "../../evil"},
        {"dtype": "os.system"},
        {"id2label": {"a": "b"}},
        *({"initializer_range": number} for number in (-1.0, float("inf"), "wide")),
    ],
)
def test_a_configuration_of_nonsense_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_backbone(tmp_path)
    config_of(tmp_path, **changes)
    with pytest.raises(UsageError) as caught:
        load_model(resolve_model(str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"null", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'{"model": 3}'])
def test_a_damaged_tokenizer_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    save_backbone(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match="No usable tokenizer"):
        load_tokenizer(str(tmp_path))


def test_the_hubs_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1f"
    save_backbone(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert resolve_model(str(snapshot)).origin == "folder"


def test_an_adapter_in_the_folder_is_not_loaded_into_the_backbone(tmp_path: Path) -> None:
    save_backbone(tmp_path)
    model = load_model(str(tmp_path), new_head=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    peft = get_peft_model(model, LoraConfig(target_modules=["query"], init_lora_weights=False))
    peft.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    with pytest.raises(UsageError, match=r"adapter of Hugging Face peft \(adapter_config\.json\)"):
        resolve_model(str(tmp_path))
    by_hand = models_source(tmp_path)
    with pytest.raises(UsageError, match="adapter of Hugging Face peft"):
        load_model(by_hand)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_model.safetensors").unlink()
    again = load_model(str(tmp_path), new_head=False).state_dict()
    assert before.keys() == again.keys()
    assert all(torch.equal(again[k], before[k]) for k in before)


def models_source(folder: Path) -> Any:
    from autopeft.assets import ModelSource

    return ModelSource(str(folder), None, "folder", None)


@pytest.mark.parametrize("kind", [AutoModelForQuestionAnswering, LlamaForQuestionAnswering])
def test_a_class_that_calls_its_backbone_otherwise_has_the_checkpoints_weights(
    kind: Any, tmp_path: Path
) -> None:
    plain = tiny_model("llama")
    plain.save_pretrained(tmp_path / "llama")
    found = load_model(resolve_model(str(tmp_path / "llama")), kind, {"pad_token_id": 0})
    state = found.base_model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.base_model.state_dict().items())


def without_pooler(folder: Path) -> Path:
    """What is left of a checkpoint that was trained on masked tokens."""
    file = save_backbone(folder) / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "pooler" not in k}
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def test_a_pooler_that_is_not_there_is_the_same_whenever_it_is_loaded(tmp_path: Path) -> None:
    """No file of a hybrid holds it, so that the head of one seed would read the pooler of another."""
    source = resolve_model(str(without_pooler(tmp_path / "bert")))
    first, second, half = (
        load_model(source, seed=seed, dtype=dtype)
        for seed, dtype in ((0, torch.float32), (5, torch.float32), (5, torch.bfloat16))
    )
    names = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert list(drawn(first)) == names
    for name in names:
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))
        assert torch.equal(first.get_parameter(name).bfloat16(), half.get_parameter(name))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    weight = first.get_parameter(names[1])
    assert 0.9 < float(weight.detach().std()) / first.config.initializer_range < 1.1
    with torch.random.fork_rng(devices=[]):  # as transformers draws it: runs of the seed 0 go on
        torch.manual_seed(0)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert")
    assert torch.equal(plain.get_parameter(names[1]), weight)
    assert drawn(load_model(resolve_model(str(save_backbone(tmp_path / "whole"))))) == {}


def test_the_configuration_is_read_as_before(tmp_path: Path) -> None:
    save_backbone(tmp_path)
    assert load_config(resolve_model(str(tmp_path))).hidden_size == 32
