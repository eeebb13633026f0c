"""The README beside an adapter: its code, as it stands there, gives the hybrid's own logits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone
from support.tiny import logits, randomise
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autopeft.export.peft_format import to_peft
from autopeft.hybrid import attach
from autopeft.recipe import Recipe


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
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    assert len(blocks) == 2
    for code in blocks:
        names: dict[str, Any] = {}
        exec(code, names)
        torch.testing.assert_close(logits(names["model"].eval(), inputs), expected, atol=1e-5, rtol=1e-5)
