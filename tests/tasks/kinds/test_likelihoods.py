"""The loss of answers equals that of transformers, whole, in parts, and with the projection narrowed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.language import chats, word_tokenizer
from support.tiny import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.errors import UsageError
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.answers import IGNORED, EncodedAnswers, encode_conversations
from autopeft.tasks.kinds.likelihoods import (
    LIKELIHOOD,
    TOKEN_ACCURACY,
    AnswerLoss,
    predicting,
    read_alone,
    row_likelihoods,
    token_loss,
)
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.losses import logits_of

CPU = torch.device("cpu")
DECODERS = ("llama", "gpt2")


def rows(count: int = 6) -> EncodedAnswers:
    return encode_conversations(chats(count), word_tokenizer(), 64, kind="causal_lm", cached=False)


def batch_of(count: int = 6) -> dict[str, Tensor]:
    return rows(count).collate(range(count))


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
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * max(1.0, float(gradient.abs().max())), (
            name
        )


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("narrow", [False, True])
def test_loss_and_gradients_are_those_of_transformers(name: str, narrow: bool) -> None:
    model, batch = tiny_model(name), batch_of()
    loss, wanted = theirs(model, batch)
    logits = Forward(model, kind=get_kind("causal_lm") if narrow else None)(batch)
    assert logits.ndim == (2 if narrow else 3)
    own = AnswerLoss().mean(logits, batch["labels"])
    own.backward()  # type: ignore[no-untyped-call]
    assert float(own.detach()) == pytest.approx(loss, abs=1e-5)
    close(gradients(model), wanted)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("micro_rows", [1, 4])
def test_micro_batches_add_up(name: str, micro_rows: int) -> None:
    model, batch = tiny_model(name), batch_of()
    loss, wanted = theirs(model, batch)
    forward = Forward(model, kind=get_kind("causal_lm"))
    gradient = Gradient(forward, AnswerLoss(), micro_rows=micro_rows, device=CPU)
    found = gradient.accumulate(batch, [], list(model.parameters()))
    assert found == pytest.approx(loss, abs=1e-5)
    close(gradients(model), wanted)


@pytest.mark.parametrize("name", DECODERS)
def test_the_narrowed_projection_gives_the_same_logits(name: str) -> None:
    model, batch = tiny_model(name), batch_of()
    whole = logits_of(model, batch)
    with read_alone(model, predicting(batch["labels"], 1)):
        alone = logits_of(model, batch)
    read = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))
    assert alone.shape == (int(read.sum()), whole.shape[-1])
    assert torch.allclose(alone, whole[read], atol=1e-6)
    assert torch.equal(logits_of(model, batch), whole), "the hook stays"


def test_what_has_no_vocabulary_is_refused() -> None:
    with (
        pytest.raises(UsageError, match="no projection to a vocabulary"),
        read_alone(tiny_model("bert"), predicting(batch_of()["labels"], 1)),
    ):
        pass


def test_a_batch_without_anything_to_learn_loses_nothing() -> None:
    model, batch = tiny_model("llama"), batch_of()
    batch["labels"].fill_(IGNORED)
    loss = AnswerLoss().mean(Forward(model, kind=get_kind("causal_lm"))(batch), batch["labels"])
    assert float(loss.detach()) == 0.0


def test_likelihoods_of_rows_add_up_to_the_loss() -> None:
    model, batch = tiny_model("llama"), batch_of()
    with torch.no_grad():
        logits = logits_of(model, batch)
        found = row_likelihoods(logits, batch["labels"])
        loss, _ = float(AnswerLoss().mean(logits, batch["labels"])), None
    assert found.shape == (6, 3)
    assert found[:, 1].tolist() == rows().labels.tolist()  # type: ignore[union-attr]
    assert token_loss(found) == pytest.approx(loss, rel=1e-6)
    for i in range(6):
        one = {k: v[i : i + 1] for k, v in batch.items()}
        assert found[i, 0] / found[i, 1] == pytest.approx(
            float(AnswerLoss().mean(logits[i : i + 1], one["labels"]))
        )
    shifted = batch["labels"][:, 1:]
    right = (logits[:, :-1].argmax(-1) == shifted) & (shifted != IGNORED)
    assert found[:, 2].tolist() == right.sum(1).tolist()


def test_losses_of_rows_are_those_of_each_row_alone() -> None:
    model, batch = tiny_model("llama"), batch_of()
    batch["labels"][2] = IGNORED
    with torch.no_grad():
        logits = logits_of(model, batch)
        narrow = Forward(model, kind=get_kind("causal_lm"))(batch)
        found = AnswerLoss().each(logits, batch["labels"])
        alone = [AnswerLoss().mean(logits[i : i + 1], batch["labels"][i : i + 1]) for i in range(6)]
    assert torch.allclose(found, torch.stack(alone))
    assert found[2] == 0
    assert torch.allclose(AnswerLoss().each(narrow, batch["labels"]), found, atol=1e-6)


def test_the_metrics_of_known_likelihoods() -> None:
    outputs = np.array([[2 * math.log(2), 2, 1], [6 * math.log(2), 2, 0], [0.0, 0, 0]])
    labels: np.ndarray[Any, Any] = np.array(["a", "b", "c"], dtype=object)
    assert LIKELIHOOD.score(outputs, labels) == pytest.approx(0.25)
    assert TOKEN_ACCURACY.score(outputs, labels) == 0.25
    kind = get_kind("causal_lm")
    assert kind.row_loss(outputs, labels) == pytest.approx(math.log(4))
    assert kind.present(outputs[1], ()) == pytest.approx({"loss": math.log(8), "perplexity": 8, "tokens": 2})
    assert kind.pseudo_values(LIKELIHOOD, outputs, labels).shape == (3,)
