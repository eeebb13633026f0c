"""A kind whose labels are sequences, one for each token: own batches, an exact divisor over tokens, outputs
of different lengths. The contract carries it through training and scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.training import encoded_task, tiny_bert
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, BertForTokenClassification

from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks import EncodedTask
from autopeft.tasks.kinds import Encoder, Head, Loss, Metric, Schema, Scorer, TaskKind, register_kind
from autopeft.tasks.tokens import EncodedSplit
from autopeft.training import TrainingPlan, predict, run_trial, scores
from autopeft.training.forward import shortest_forward

pytestmark = pytest.mark.usefixtures("own_registry")
IGNORED = -100
RECIPE = Recipe.from_dict(
    {
        "name": "r",
        "layers": [{"at": 1, "attach": [{"lora": {"rank": 2}}]}],
        "training": {"learning_rate": 0.05},
    }
)


def per_token(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(np.mean(np.concatenate(list(predictions)) == np.concatenate(list(labels))))


class Tagged(EncodedSplit):
    """Labels are arrays of the rows' lengths, padded like the tokens."""

    def collate(
        self, rows: Sequence[int] | NDArray[np.int64], *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        assert self.labels is not None
        batch = replace(self, labels=None).plain(rows, device)
        width = batch["input_ids"].shape[1]
        chosen = [self.labels[i] for i in rows]
        padded = [np.pad(tags, (0, width - len(tags)), constant_values=IGNORED) for tags in chosen]
        batch["labels"] = torch.from_numpy(np.stack(padded)).to(device)
        return batch

    def plain(self, rows: Any, device: Any) -> dict[str, Tensor]:
        return super().collate(rows, device=device)


class OverTokens(Loss):
    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        flat = logits.float().flatten(0, 1)
        return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        return float((batch["labels"] != IGNORED).sum())


class TokenScorer(Scorer):
    """Logits of each token."""

    metrics = (Metric("per_token", 0, 1, "share of tokens that are right", per_token),)

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return OverTokens()

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        found = run().argmax(-1).cpu().numpy()
        lengths = batch["attention_mask"].sum(1).tolist()
        return ragged([row[:n] for row, n in zip(found, lengths, strict=True)])

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        return {"tags": [names[i] for i in output]}

    def line(self, prediction: Mapping[str, Any]) -> str:
        return " ".join(prediction["tags"])


class TokenHead(Head):
    """One output for each class, at each token."""

    auto_class = AutoModelForTokenClassification
    pooled = False
    peft_task_type = "TOKEN_CLS"
    hub_pipeline = "token-classification"

    def num_labels(self, names: Sequence[str]) -> int:
        return len(names)

    def config(self, names: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": len(names)}


class TokenEncoder(Encoder):
    """Labels of each token."""

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        return ragged(labels)


def ragged(rows: Sequence[Any]) -> NDArray[Any]:
    found = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        found[i] = np.asarray(row, dtype=np.int64)
    return found


def tagged(split: EncodedSplit) -> Tagged:
    """Each token is tagged with whether its number is odd."""
    labels = ragged([split.ids[a:b] % 2 for a, b in zip(split.offsets, split.offsets[1:], strict=False)])
    return Tagged(**{**vars(split), "labels": labels, "kind": "tags"})


@pytest.fixture
def data(own_registry: None) -> EncodedTask:
    parts = {"schema": Schema(), "encoder": TokenEncoder(), "head": TokenHead(), "scorer": TokenScorer()}
    register_kind(TaskKind("tags", "a class for each token", **parts))
    plain = encoded_task()
    splits = {name: tagged(split) for name, split in plain.splits.items()}
    task = replace(plain.task, kind="tags", metric="per_token", labels=("even", "odd"))
    return EncodedTask(task, splits, 16)


def tagger() -> BertForTokenClassification:
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(3)
    return BertForTokenClassification(tiny_bert(2, **options).config).eval()


def plan(**changes: Any) -> TrainingPlan:
    return TrainingPlan(**{"steps": 60, "batch_size": 8, "device": "cpu", **changes})


def test_it_trains_and_is_scored(data: EncodedTask) -> None:
    outcome = run_trial(tagger(), RECIPE, data, plan(steps=240), splits=("select", "test"))
    assert outcome.train.losses[-1] < 0.7 * outcome.train.losses[0]
    assert outcome.scores["test"] > 0.65, "half of the tokens are odd"


def test_tokens_and_not_rows_are_the_divisor(data: EncodedTask) -> None:
    whole, parts = (
        run_trial(tagger(), RECIPE, data, plan(steps=4, micro_batch=m)).train.losses for m in (None, 3)
    )
    assert parts == pytest.approx(whole, rel=1e-5)
    model = tagger()
    batch = data.train.collate([0, 1, 2])
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    wanted = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert torch.allclose(data.task.loss().mean(logits, batch), wanted)


def test_outputs_of_different_lengths_come_back_in_order(data: EncodedTask) -> None:
    model = tagger()
    found = predict(model, data.test, batch_size=7)
    assert [len(row) for row in found] == data.test.lengths.tolist()
    for i in (0, 11):
        batch = data.test.collate([i])
        alone = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1)[0]
        assert found[i].tolist() == alone.tolist()
    right = scores(model, data.test, ["per_token"])["per_token"]
    assert data.test.labels is not None
    assert right == per_token(found, data.test.labels)


def test_the_kind_says_which_shortcuts_there_are(
    data: EncodedTask, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    for kind, made in ((data, tagger), (encoded_task(), tiny_bert)):
        with attach(made(), RECIPE, seed=0) as hybrid:
            forward = shortest_forward(hybrid, kind, plan(), dropout=False)
            assert forward.trunk is not None
            assert (forward.rows is not None) is kind.task.task_kind.head.pooled
            monkeypatch.setattr(type(kind.task.task_kind.encoder), "tokenwise_trunk", False)
            monkeypatch.setattr(type(kind.task.task_kind.head), "pooled", False)
            forward = shortest_forward(hybrid, kind, plan(), dropout=False)
            assert forward.trunk is forward.rows is None


def test_a_head_that_is_not_new_stays_as_it_was_trained(
    data: EncodedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    for new in (True, False):
        monkeypatch.setattr(TokenHead, "new_head", new)
        model = tagger()
        with torch.no_grad():
            model.classifier.weight.fill_(1.0)
        keep = lambda hybrid, _: seen.append(hybrid.model.classifier.weight.detach().clone())  # noqa: E731
        run_trial(model, RECIPE, data, plan(steps=1), keep=keep)
    assert float(seen[0].mean()) < 0.5 < float(seen[1].mean())
