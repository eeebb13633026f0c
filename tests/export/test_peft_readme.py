"""The README beside an adapter: its code, as it stands there, gives the hybrid's own logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.saved_model import save_backbone
from support.tiny import logits, randomise, tiny_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from autopeft.assets import load_model
from autopeft.assets.heads import drawn
from autopeft.export.diff_format import diff_of
from autopeft.export.peft_format import to_peft
from autopeft.hybrid import attach
from autopeft.recipe import Recipe


def blocks_of(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)


def run(code: str) -> PreTrainedModel:
    names: dict[str, Any] = {}
    exec(code, names)
    model: PreTrainedModel = names["model"]
    return model.eval()


def test_a_pooler_that_the_checkpoint_lacks_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain transformers would draw another one each time."""
    file = save_backbone(tmp_path / "bert", initializer_range=0.3) / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(file).items() if "pooler" not in k}, file, metadata={"format": "pt"}
    )
    model = load_model(str(tmp_path / "bert"))
    hybrid = attach(model, Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]}))
    randomise(hybrid.root)
    inputs = dict(AutoTokenizer.from_pretrained(tmp_path / "bert")("the film was good", return_tensors="pt"))
    expected = logits(hybrid.model.eval(), inputs)
    diff = diff_of(attach(load_model(str(tmp_path / "bert")), Recipe.from_dict({"model": ["bitfit"]})))
    assert {f"whole.{name}" for name in drawn(model)} <= set(diff.tensors())
    monkeypatch.chdir(to_peft(hybrid, tmp_path / "peft"))
    for code in blocks_of(Path()):
        torch.testing.assert_close(logits(run(code), inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "blocks"), [(AutoModelForQuestionAnswering, 1), (AutoModelForSequenceClassification, 2)]
)
def test_a_decoder_s_checkpoint_is_loaded_as_it_was(
    kind: Any, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class for questions calls its backbone otherwise, and batches to classify need a padding token."""
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(save_backbone(tmp_path / "bert")).save_pretrained(tmp_path / "llama")
    config = tmp_path / "llama" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": None}))
    model = load_model(str(tmp_path / "llama"), kind)
    hybrid = attach(model, Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]}))
    randomise(hybrid.root)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def outputs(found: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return found(**inputs)[0][:1]

    expected = outputs(hybrid.model.eval())
    monkeypatch.chdir(to_peft(hybrid, tmp_path / "peft"))
    assert len(blocks_of(Path())) == blocks
    for code in blocks_of(Path()):
        torch.testing.assert_close(outputs(run(code)), expected, atol=1e-5, rtol=1e-5)
    hybrid.save(tmp_path / "saved")
    hybrid.model.save_pretrained(tmp_path / "saved")
    (code,) = blocks_of(tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    torch.testing.assert_close(outputs(run(code)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_block_of_code_loads_it_in_fp32_whatever_the_checkpoint_is_in(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, backbone = AutoModelForSequenceClassification, save_backbone(tmp_path / "bert")
    kind.from_pretrained(backbone, dtype=dtype).save_pretrained(backbone)
    model = kind.from_pretrained(backbone, dtype=torch.float32)
    recipe = Recipe.from_dict({"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
    hybrid = attach(model, recipe)
    randomise(hybrid.root)
    inputs = dict(AutoTokenizer.from_pretrained(backbone)("the film was good", return_tensors="pt"))
    expected = logits(hybrid.model.eval(), inputs)
    monkeypatch.chdir(to_peft(hybrid, tmp_path / "peft"))
    blocks = blocks_of(Path())
    assert len(blocks) == 2
    for code in blocks:
        torch.testing.assert_close(logits(run(code), inputs), expected, atol=1e-5, rtol=1e-5)
