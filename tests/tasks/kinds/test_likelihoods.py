"""The loss of answers equals that of transformers, whole, in parts, and with the projection narrowed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.language import chats, encoder_decoder, pairs, side_tokenizer, word_tokenizer
from support.tiny import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.errors import UsageError
from autopeft.tasks.kinds import TaskKind, get_kind
from autopeft.tasks.kinds.conversation_tokens import IGNORED, EncodedConversations, encode_conversations
from autopeft.tasks.kinds.likelihoods import (
    LIKELIHOOD,
    TOKEN_ACCURACY,
    AnswerLoss,
    predicting,
    read_alone,
    row_likelihoods,
    token_loss,
)
from autopeft.tasks.kinds.seq2seq import TargetEncoder
from autopeft.tasks.split import Split
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.losses import logits_of, slice_rows

CPU = torch.device("cpu")
DECODERS = ("llama", "gpt2")
ENCODER_DECODERS = ("t5", "bart")
EACH = pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])


def rows(count: int = 6) -> EncodedConversations:
    return encode_conversations(chats(count), word_tokenizer(), 64, kind="causal_lm", cached=False)


def batch_of(count: int = 6) -> dict[str, Tensor]:
    return rows(count).collate(range(count))


def given(name: str) -> tuple[TaskKind, PreTrainedModel, dict[str, Tensor]]:
    """The kind of task that a model learns answers by, the model, and a batch of rows of unequal lengths."""
    if name in DECODERS:
        return get_kind("causal_lm"), tiny_model(name), batch_of()
    sources, wanted = pairs(6)
    rows = Split(sources, None, wanted)
    targets = TargetEncoder().encode(rows, side_tokenizer(), 20, cached=False)
    batch = targets.collate(range(6))
    assert (batch["labels"] == IGNORED).any()
    assert (batch["attention_mask"] == 0).any()
    return get_kind("seq2seq"), encoder_decoder(name), batch


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def theirs(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of transformers itself."""
    found = model(**{k: v for k, v in batch.items() if k != "task_id"}).loss
    found.backward()
    return float(found.detach()), gradients(model)


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        largest = max(1.0, float(gradient.abs().max()))
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * largest, name


@EACH
@pytest.mark.parametrize("narrow", [False, True])
def test_loss_and_gradients_are_those_of_transformers(name: str, narrow: bool) -> None:
    kind, model, batch = given(name)
    loss, wanted = theirs(model, batch)
    logits = Forward(model, kind=kind)(batch) if narrow else logits_of(model, batch, kind)
    assert logits.ndim == (2 if narrow else 3)
    own = kind.scorer.loss(()).mean(logits, batch)
    own.backward()  # type: ignore[no-untyped-call]
    assert float(own.detach()) == pytest.approx(loss, abs=1e-5)
    close(gradients(model), wanted)


@EACH
@pytest.mark.parametrize("micro_rows", [1, 4])
def test_micro_batches_add_up(name: str, micro_rows: int) -> None:
    kind, model, batch = given(name)
    loss, wanted = theirs(model, batch)
    gradient = Gradient(Forward(model, kind=kind), kind.scorer.loss(()), micro_rows=micro_rows, device=CPU)
    found = gradient.accumulate(batch, [], list(model.parameters()))
    assert found == pytest.approx(loss, abs=1e-5)
    close(gradients(model), wanted)


@EACH
def test_the_narrowed_projection_gives_the_same_logits(name: str) -> None:
    """T5 scales what its tied projection reads; BART adds a bias behind it."""
    kind, model, batch = given(name)
    if name == "bart":
        torch.nn.init.normal_(model.final_logits_bias)
    whole, alone = logits_of(model, batch, kind), Forward(model, kind=kind)(batch)
    read = batch["labels"] != IGNORED
    if name in DECODERS:  # a token is predicted by the one before it
        read = torch.nn.functional.pad(read[:, 1:], (0, 1))
    assert alone.shape == (int(read.sum()), whole.shape[-1])
    assert torch.allclose(alone, whole[read], atol=1e-6)
    assert torch.equal(logits_of(model, batch, kind), whole), "the hook stays"


def test_what_has_no_vocabulary_is_refused() -> None:
    with (
        pytest.raises(UsageError, match="no projection to a vocabulary"),
        read_alone(tiny_model("bert"), predicting(batch_of()["labels"], 1)),
    ):
        pass


def test_a_batch_without_anything_to_learn_loses_nothing() -> None:
    model, batch = tiny_model("llama"), batch_of()
    batch["labels"].fill_(IGNORED)
    loss = AnswerLoss().mean(Forward(model, kind=get_kind("causal_lm"))(batch), batch)
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_likelihoods_of_rows_add_up_to_the_loss(name: str) -> None:
    kind, model, batch = given(name)
    ahead = int(name in DECODERS)  # how far before a token the logits that predict it stand
    with torch.no_grad():
        logits = logits_of(model, batch, kind)
        found = row_likelihoods(logits, batch["labels"], ahead)
        loss = AnswerLoss(ahead)
        assert token_loss(found) == pytest.approx(float(loss.mean(logits, batch)), rel=1e-6)
        for i in range(6):
            alone = loss.mean(logits[i : i + 1], slice_rows(batch, i, i + 1))
            assert found[i, 0] / found[i, 1] == pytest.approx(float(alone))
    labels = batch["labels"][:, ahead:]
    assert found[:, 1].tolist() == (labels != IGNORED).sum(1).tolist()
    right = (logits[:, : logits.shape[1] - ahead].argmax(-1) == labels) & (labels != IGNORED)
    assert found[:, 2].tolist() == right.sum(1).tolist()


def test_losses_of_rows_are_those_of_each_row_alone() -> None:
    model, batch = tiny_model("llama"), batch_of()
    batch["labels"][2] = IGNORED
    with torch.no_grad():
        logits = logits_of(model, batch)
        narrow = Forward(model, kind=get_kind("causal_lm"))(batch)
        found = AnswerLoss().each(logits, batch)
        alone = [AnswerLoss().mean(logits[i : i + 1], slice_rows(batch, i, i + 1)) for i in range(6)]
    assert torch.allclose(found, torch.stack(alone))
    assert found[2] == 0
    assert torch.allclose(AnswerLoss().each(narrow, batch), found, atol=1e-6)


def test_the_metrics_of_known_likelihoods() -> None:
    outputs = np.array([[2 * math.log(2), 2, 1], [6 * math.log(2), 2, 0], [0.0, 0, 0]])
    labels: np.ndarray[Any, Any] = np.array(["a", "b", "c"], dtype=object)
    assert LIKELIHOOD.score(outputs, labels) == pytest.approx(0.25)
    assert TOKEN_ACCURACY.score(outputs, labels) == 0.25
    kind = get_kind("causal_lm")
    assert kind.scorer.row_loss(outputs, labels) == pytest.approx(math.log(4))
    assert kind.scorer.present(outputs[1], ()) == pytest.approx(
        {"loss": math.log(8), "perplexity": 8, "tokens": 2}
    )
    assert kind.scorer.pseudo_values(LIKELIHOOD, outputs, labels).shape == (3,)
