"""Configurations that ask for more than any model has are refused before a model is made."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import BertConfig, GPT2Config, PreTrainedConfig, T5Config

from autopeft.assets.bounds import MOST_LAYERS, bounded_model, check_layers
from autopeft.backbones import spec_of
from autopeft.cli import main
from autopeft.errors import UsageError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**{**SMALL, "num_hidden_layers": 100_000}),
        GPT2Config(n_layer=100_000),
        T5Config(num_layers=2, num_decoder_layers=100_000),
        {"text_config": {"num_hidden_layers": 100_000}},
        {"depths": [2, 100_000]},
        {"layer_types": ["full"] * 2000},
        {"num_blocks": 10**400},
    ],
)
def test_more_layers_than_any_model_has(config: Any) -> None:
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    with pytest.raises(UsageError, match=r"at most 1,000 layers are taken; is it damaged\?"):
        check_layers(values, "'x'")


def test_what_models_have_is_taken() -> None:
    check_layers(BertConfig().to_dict(), "'x'")
    check_layers({"num_hidden_layers": MOST_LAYERS, "layer_norm_eps": 1e-12, "block_size": 4096}, "'x'")
    check_layers({"layers": None, "encoder_layers": "two", "max_position_embeddings": 10**7}, "'x'")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 10**9}, "more than 1e[+]13 parameters"),
        ({"vocab_size": 10**12}, "more than 1e[+]13 parameters"),
        ({"intermediate_size": 10**18}, "makes no model|more than 1e[+]13"),
        ({"num_attention_heads": 0}, "makes no model"),
        ({"num_attention_heads": 3}, "makes no model"),
        ({"hidden_size": -16}, "makes no model"),
    ],
)
def test_sizes_that_no_model_has(changes: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=f"The configuration of 'bert' .*({said})"):
        spec_of(BertConfig(**{**SMALL, **changes}))


def test_a_configuration_that_its_class_refuses_when_it_is_made_again() -> None:
    config = BertConfig(**SMALL, problem_type="single_label_classification")
    config.num_labels = 1
    with pytest.raises(UsageError, match=r"The configuration of 'bert' makes no model: .*num_labels"):
        spec_of(config)


def test_other_threads_make_what_they_like() -> None:
    made: list[nn.Module] = []
    with bounded_model("'x'"):
        other = threading.Thread(
            target=lambda: made.append(nn.ModuleList(nn.LayerNorm(1) for _ in range(26_000)))
        )
        other.start()
        other.join()
    assert len(made) == 1
    with pytest.raises(UsageError, match="50,000 tensors"), bounded_model("'x'"):
        nn.ModuleList(nn.LayerNorm(1) for _ in range(26_000))
    nn.ModuleList(nn.LayerNorm(1) for _ in range(26_000))


def test_the_command_line_says_so_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**BertConfig(**SMALL).to_dict(), "num_hidden_layers": 100_000})
    )
    assert main(["count", "mam", "--model", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "num_hidden_layers=100,000, but at most 1,000 layers" in errors
