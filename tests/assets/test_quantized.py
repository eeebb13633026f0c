from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.quantized import FOUR_BITS, quantised
from support.saved_model import save_backbone, write_reviews
from support.tiny import tiny_config, tiny_model
from transformers import AutoTokenizer, GPTQConfig

import autopeft
from autopeft.assets import keep_model, load_config, load_model, quantization_in, quantization_of
from autopeft.backbones import spec_of
from autopeft.cli import main
from autopeft.errors import UsageError
from autopeft.recipe import Recipe


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (FOUR_BITS, "bitsandbytes, 4 bits"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
            "bitsandbytes, 8 bits",
        ),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ({"quant_method": "hqq", "nbits": 2}, "hqq, 2 bits"),
        ({"quant_method": "fp8"}, "fp8"),
        (GPTQConfig(bits=4), "gptq, 4 bits"),
    ],
)
def test_how_a_configuration_is_quantised(told: Any, words: str) -> None:
    config = tiny_config("bert")
    assert quantization_in(config) is None
    config.quantization_config = told
    assert quantization_in(config) == words


def test_what_is_said_of_the_text_part_counts() -> None:
    inner = SimpleNamespace(quantization_config=FOUR_BITS)
    assert quantization_in(SimpleNamespace(get_text_config=lambda: inner)) == "bitsandbytes, 4 bits"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_that_are_no_numbers_of_16_bits_tell_it_too(dtype: torch.dtype) -> None:
    model = tiny_model("bert")
    assert quantization_of(model) is None
    assert quantization_of(model.to(torch.bfloat16)) is None
    linear: Any = model.base_model.encoder.layer[0].output.dense
    linear.weight = torch.nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
    assert quantization_of(model) == str(dtype).removeprefix("torch.")


def test_a_model_that_was_dequantised_is_none_any_more() -> None:
    packed = quantised(tiny_model("bert"))
    assert quantization_of(packed) == "bitsandbytes, 4 bits"
    plain = tiny_model("bert")
    plain.config.quantization_config = dict(FOUR_BITS)  # what a checkpoint says of itself
    assert quantization_of(plain) is None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain backbone in `bert`, and one whose configuration says that it is quantised in `four-bits`."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_reviews(tmp_path / "reviews.csv")
    for name in ("bert", "four-bits"):
        save_backbone(tmp_path / name)
    file = tmp_path / "four-bits" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": FOUR_BITS}))
    (tmp_path / "lora.yaml").write_text("autopeft: 2\nname: mine\nlayers:\n- attach: [lora]\n")
    return tmp_path


SAID = r"The backbone 'four-bits' is quantized \(bitsandbytes, 4 bits\), and by name only backbones in fp32"


def test_by_name_it_is_refused_before_anything_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data: dict[str, Any] = {"task": "reviews.csv", "text": "body", "label": "verdict"}
    with pytest.raises(UsageError, match=SAID):
        load_model("four-bits")
    with pytest.raises(UsageError, match=SAID):
        autopeft.train(recipe=Recipe.named("pfeiffer"), model="four-bits", **data)
    with pytest.raises(UsageError, match=SAID):
        autopeft.search(budget="1%", model="four-bits", workers=0, **data)
    assert not (place / "runs").exists()
    argv = ["train", "-r", "lora.yaml", "-t", "reviews.csv", "--text", "body", "--label", "verdict"]
    assert main([*argv, "-m", "four-bits"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: The backbone 'four-bits' is quantized")


def test_counts_are_those_of_the_plain_backbone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spec_of(load_config("four-bits")) == spec_of(load_config("bert"))
    counts = []
    for model in ("bert", "four-bits"):
        assert main(["count", "lora.yaml", "-m", model, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        counts.append({key: found[key] for key in ("deployed", "trained", "head", "backbone", "share")})
    assert counts[0] == counts[1]


def test_in_memory_it_is_not_handed_to_other_processes(place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("bert")
    with pytest.raises(UsageError, match=r"quantized \(bitsandbytes, 4 bits\); hand over the model in fp32"):
        keep_model(quantised(tiny_model("bert")), tokenizer)
