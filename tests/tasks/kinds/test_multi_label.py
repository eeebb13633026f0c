"""Several labels for each text: the loss of transformers, scores as scikit-learn has them, from end to
end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from support.saved_model import save_backbone
from support.several_labels import write_labelled
from support.training import lora_recipe
from torch.nn import functional as F

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import DataError, TaskError
from autopeft.tasks import load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric
from autopeft.tasks.kinds.multi_label import LabelwiseLoss
from autopeft.tasks.summary import summarise
from autopeft.tasks.table import RawRows
from autopeft.training import TrainingPlan
from autopeft.training.head_start import fitted_head, start_head

KIND = get_kind("multi_label")
NAMES = ("a", "b", "c")
RECIPE = lora_recipe()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert", biases=0.02)
    write_labelled(folder / "data.jsonl")
    write_labelled(folder / "data.csv")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))


def part(*rows: list[str], where: str = "x") -> RawRows:
    return RawRows(where, ["t"] * len(rows), None, list(rows))


def draws() -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    labels = (draw.random((60, 3)) < [0.6, 0.3, 0.1]).astype(np.float32)
    return draw.normal(2 * labels - 1, 1.5).astype(np.float32), labels


def test_weighted_labels_are_those_of_torch() -> None:
    logits, labels = (torch.from_numpy(a) for a in draws())
    weights = torch.tensor([0.5, 2.0, 9.0])
    wanted = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
    assert float(LabelwiseLoss([0.5, 2.0, 9.0]).mean(logits, {"labels": labels})) == pytest.approx(
        float(wanted)
    )
    balanced = KIND.scorer.class_weights("balanced", [(1, 0), (1, 0), (1, 1), (0, 0)], ("a", "b"))
    assert balanced == [pytest.approx(1 / 3), 3.0]
    assert KIND.scorer.class_weights([1, 2], [(1, 0)], ("a", "b")) == [1.0, 2.0]
    for wrong in ([1.0], [1.0, -1.0], "even"):
        with pytest.raises(TaskError):
            KIND.scorer.class_weights(wrong, [(1, 0)], ("a", "b"))


def test_scores_are_those_of_scikit_learn() -> None:
    outputs, labels = draws()
    said = outputs > 0
    wanted = {
        "micro_f1": sk.f1_score(labels, said, average="micro"),
        "macro_f1": sk.f1_score(labels, said, average="macro"),
        "subset_accuracy": sk.accuracy_score(labels, said),
        "lrap": sk.label_ranking_average_precision_score(labels, outputs),
    }
    for name, score in wanted.items():
        metric = get_metric(name)
        assert KIND.scorer.score(metric, outputs, labels) == pytest.approx(score), name
        parts = KIND.scorer.pseudo_values(metric, outputs, labels)
        assert parts.shape == (60,)
        assert parts.mean() == pytest.approx(score, abs=0.05)

        class Rows:
            rows, classes = 60, KIND.schema.class_counts(labels.tolist(), NAMES)

        rows: Any = Rows()
        rows.labels = labels
        assert 0 < metric.sampling_variance(score, rows) < 0.02
    assert KIND.scorer.row_loss(outputs, labels) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(torch.from_numpy(outputs), torch.from_numpy(labels)))
    )
    decided = KIND.scorer.decisions(outputs)
    assert np.array_equal(KIND.scorer.decisions(decided), decided)
    (table,) = KIND.scorer.breakdown(outputs, labels, NAMES)
    scores = sk.precision_recall_fscore_support(labels, said)
    assert table.rows[1] == pytest.approx(("b", *(float(s[1]) for s in scores)))


def test_the_mean_of_several_models_is_that_of_probabilities() -> None:
    logits = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    mean = KIND.scorer.average({})
    assert mean is not None
    assert torch.allclose(mean(logits, 0).sigmoid(), logits.sigmoid().mean(0), atol=1e-6)


def test_labels_as_marks() -> None:
    names, (rows,) = KIND.schema.encode_labels([part(["b"], ["c", "a", "a"], [])])
    assert names == NAMES
    assert rows == [(0, 1, 0), (1, 0, 1), (0, 0, 0)]
    assert KIND.schema.encode_labels([part(["10", "9"])])[0] == ("9", "10")
    assert KIND.schema.encode_labels([part(["b"])], ("b", "z", "a")) == (("b", "z", "a"), [[(1, 0, 0)]])
    assert KIND.schema.relabel([(1, 0)], ("a", "b"), ("b", "c", "a")) == [(0, 0, 1)]
    assert KIND.schema.strata([(1, 0), (1, 1), (0, 0)]) == [0, 1, 2]
    with pytest.raises(DataError, match="y has labels that x lacks"):
        KIND.schema.encode_labels([part(["a", "b"]), part(["d"], where="y")])
    with pytest.raises(DataError, match="1 different labels; two are needed"):
        KIND.schema.encode_labels([part(["a"], [])])
    with pytest.raises(DataError, match="60 different labels in 60 rows are too many"):
        KIND.schema.encode_labels([part(*([str(i)] for i in range(60)))])


def test_the_same_labels_for_all_rows(place: Path) -> None:
    labels = [(1, 0, 0)] * 6 + [(1, 1, 0)] * 3 + [(0, 0, 1)]
    name, answer = KIND.scorer.constant(labels, NAMES) or ("", None)
    assert name == "always a"
    assert answer.tolist() == [1, 0, 0]
    assert KIND.schema.describe_rows(labels, NAMES).startswith("1.30 labels a row: a 9 (90.0 %)")
    task = load_task(str(place / "data.jsonl"))
    summary = summarise(task, load_tokenizer(str(place / "bert")), 32)
    assert summary.constant is not None
    assert 0.3 < summary.constant.scores["test"] < 0.9


def test_the_head_starts_where_frozen_features_put_it(place: Path) -> None:
    task = load_task(str(place / "data.jsonl"))
    model = KIND.head.load_model(str(place / "bert"), task.labels)
    data = encode(task, load_tokenizer(str(place / "bert")), 32)
    plan = TrainingPlan(steps=1, max_length=32, device="cpu", head_start="probe")
    fit = fitted_head(model, data, plan)
    assert fit is not None, "heads of several labels are probed"
    # Whether a probe is taken depends on what the backbone tells.
    assert (start_head(model, data, plan, alone=True) is None) == (fit.probe is None)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_recipe_is_trained_and_used(place: Path, tmp_path: Path) -> None:
    found = autopeft.train(
        recipe=RECIPE, task=str(place / "data.csv"), label="praise,blame,film", model=str(place / "bert"),
        steps=150, max_length=24, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert found.scores["test"] > 0.85
    assert found.samples
    evaluated = autopeft.evaluate(found.folder)
    assert evaluated.score == pytest.approx(found.scores["test"])
    other = autopeft.evaluate(found.folder, task=str(place / "data.jsonl"), label="labels", split="all")
    assert other.score > 0.85
    (said,) = autopeft.predict(found.folder, "a great film")
    assert said["labels"] == ["film", "praise"]
    assert set(said["probabilities"]) == {"blame", "film", "praise"}
    assert KIND.scorer.line(said).startswith("film 0.")
    assert KIND.scorer.line({**said, "labels": []}) == "(none)"
    autopeft.export(found.folder, out=tmp_path / "winner")
    assert autopeft.predict(tmp_path / "winner", "a great film")[0]["labels"] == ["film", "praise"]
