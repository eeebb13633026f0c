"""Logits of label words at one position: the same as of the whole vocabulary, on models of many shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny import tiny_config, tiny_model
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertForMaskedLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    MPNetForMaskedLM,
    PreTrainedModel,
    RobertaForMaskedLM,
)

from autopeft.errors import UsageError
from autopeft.tasks.kinds.cloze import (
    LABEL_WORDS,
    READ_AT,
    label_logits,
    read_in,
    read_words,
)

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForMaskedLM(tiny_config("bert")),
    "roberta": lambda: RobertaForMaskedLM(tiny_config("roberta")),
    "distilbert": lambda: DistilBertForMaskedLM(tiny_config("distilbert")),
    "mpnet": lambda: MPNetForMaskedLM(tiny_config("mpnet")),
    "deberta": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, legacy=False)),
    "legacy deberta": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, legacy=True)),
    "mobilebert": lambda: MobileBertForMaskedLM(
        MobileBertConfig(**SIZES, embedding_size=16, true_hidden_size=32, intra_bottleneck_size=32)
    ),
    "gpt2": lambda: tiny_model("gpt2"),
    "llama": lambda: tiny_model("llama"),
}


def batch_of() -> dict[str, Tensor]:
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(0)) * mask
    words = torch.tensor([[7, 11, 13]] * 3)
    return {"input_ids": ids, "attention_mask": mask, READ_AT: torch.tensor([4, 1, 6]), LABEL_WORDS: words}


def test_padding_may_be_on_either_side() -> None:
    assert read_in(batch_of()).nonzero()[:, 1].tolist() == [4, 3, 6]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_is_what_the_whole_projection_has(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    batch = batch_of()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole = model(**inputs).logits
        with read_words(model, batch):
            found = label_logits(model(**inputs).logits, batch)
        again = model(**inputs).logits
    wanted = torch.stack([whole[row, at, [7, 11, 13]] for row, at in enumerate((4, 3, 6))])
    assert torch.equal(label_logits(whole, batch), wanted)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(again, whole), "nothing stays behind"


@pytest.mark.parametrize("waits", [False, True])
def test_the_rows_of_the_label_words_are_computed_alone_unless_somebody_waits(
    waits: bool,
) -> None:
    model, batch, seen = tiny_model("llama"), batch_of(), list[tuple[int, ...]]()
    project = model.get_output_embeddings()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if waits:
        project.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    with read_words(model, batch):
        assert model(**inputs).logits.shape == (3, 3)
        assert ("forward" in vars(project)) is not waits
    assert seen == ([(3, 50)] if waits else [])
    assert "forward" not in vars(project)


def test_an_error_leaves_nothing_behind() -> None:
    model, batch = tiny_model("llama"), batch_of()
    project = model.get_output_embeddings()
    with pytest.raises(RuntimeError, match="stop"), read_words(model, batch):
        raise RuntimeError("stop")
    assert "forward" not in vars(project)
    assert not project._forward_pre_hooks


def test_other_logits_are_refused() -> None:
    batch, model = batch_of(), BertForSequenceClassification(tiny_config("bert"))
    with pytest.raises(UsageError, match=re.escape("but got the shape (3, 50) for (3, 7) tokens")):
        label_logits(torch.zeros(3, 50), batch)
    with pytest.raises(UsageError, match="has no projection to a vocabulary"), read_words(model, batch):
        pass
