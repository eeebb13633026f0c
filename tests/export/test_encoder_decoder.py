"""What an encoder-decoder learnt is read by transformers and by Hugging Face peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM, PeftModel
from support.language import save_encoder_decoder, write_pairs
from transformers import AutoModelForSeq2SeqLM

import autopeft
from autopeft.recipe import Recipe

RECIPE = Recipe.from_dict(
    {
        "name": "r",
        "layers": [{"at": "all", "attach": [{"lora": {"rank": 2, "sites": ["q", "v", "cross_q"]}}]}],
        "training": {"learning_rate": 0.03},
    }
)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_every_format_gives_the_hybrid_s_logits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    backbone = save_encoder_decoder(tmp_path / name, name)
    file = str(write_pairs(tmp_path / "pairs.jsonl", 60))
    options = {"steps": 5, "max_length": 32, "batch_size": 8, "out": str(tmp_path / "run")}
    found = autopeft.train(recipe=RECIPE, task=file, model=str(backbone), **options)  # type: ignore[arg-type]
    ids = torch.tensor([[7, 8, 9, 3]])
    wanted = found.hybrid.model(input_ids=ids, decoder_input_ids=ids).logits
    plain = AutoModelForSeq2SeqLM.from_pretrained(backbone)
    assert not torch.allclose(plain(input_ids=ids, decoder_input_ids=ids).logits, wanted, atol=1e-3)
    for form in ("merged", "peft", "lora"):
        folder = Path(autopeft.export(found, out=str(tmp_path / form), format=form).folder) / form
        assert "vllm serve" not in (folder.parent / "README.md").read_text(), "it is named for decoders alone"
        if form == "merged":
            model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        elif form == "peft":
            model = AutoPeftModelForSeq2SeqLM.from_pretrained(folder)
        else:
            model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(backbone), folder)
        logits = model.eval()(input_ids=ids, decoder_input_ids=ids).logits
        assert torch.allclose(logits, wanted, atol=1e-4), form
