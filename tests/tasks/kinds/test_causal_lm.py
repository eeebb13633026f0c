"""A decoder learns answers from end to end, shortcuts give the same loss, and encoders are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import loss_and_gradients, save_decoder, write_chats
from support.saved_model import save_backbone
from support.tiny import randomise
from support.training import LORA, lora_recipe
from transformers import LlamaForCausalLM

import autopeft
from autopeft.assets import load_tokenizer
from autopeft.errors import TaskError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks import EncodedTask, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric
from autopeft.training import TrainingPlan, predict
from autopeft.training.forward import Forward, shortest_forward

CPU = torch.device("cpu")
RECIPE = lora_recipe()


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return str(save_decoder(tmp_path / "llama"))


@pytest.fixture
def chats_file(tmp_path: Path) -> str:
    return str(write_chats(tmp_path / "chats.jsonl"))


@pytest.fixture
def data(backbone: str, chats_file: str) -> EncodedTask:
    return encode(load_task(chats_file), load_tokenizer(backbone), 48)


def recipe(*items: Any, at: Any = (2,), model: list[Any] | None = None) -> Recipe:
    layers = [{"at": list(at), "attach": list(items)}] if items else []
    return Recipe.from_dict({"name": "r", "layers": layers, "model": model or []})


def hybrid_on(backbone: str, made: Recipe) -> Hybrid:
    hybrid = attach(get_kind("causal_lm").head.load_model(backbone, ()), made, seed=0)
    randomise(hybrid.root)
    return hybrid


def test_a_recipe_is_trained_and_used(backbone: str, chats_file: str, tmp_path: Path) -> None:
    before = (
        get_kind("causal_lm").head.load_model(backbone, ()).get_output_embeddings().weight.detach().clone()
    )
    options: dict[str, Any] = {"steps": 60, "max_length": 48, "out": str(tmp_path / "run")}
    found = autopeft.train(recipe=RECIPE, task=chats_file, model=backbone, **options)
    assert found.task.kind == "causal_lm"
    assert found.scores["test"] > 0.3, "1/19 to begin with"
    assert found.counts["head"] == 0
    assert torch.equal(found.hybrid.model.get_output_embeddings().weight, before)
    assert autopeft.evaluate(found).score == pytest.approx(found.scores["test"])
    assert autopeft.evaluate(tmp_path / "run").score == pytest.approx(found.scores["test"], rel=1e-5)
    assert autopeft.evaluate(found, metric="token_accuracy").score > 0.6


def test_every_token_can_be_learnt_and_answers_are_scored(backbone: str, data: EncodedTask) -> None:
    model = LlamaForCausalLM.from_pretrained(backbone).eval()
    found = encode(data.task, load_tokenizer(backbone), 48, learn_all=True)
    assert found.train.truth is not None
    assert found.train.truth.tolist() == data.train.truth.tolist(), "the texts of the answers"
    batch = found.train.collate(range(5), device=CPU)
    labels = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    labels[:, 0] = -100  # nothing predicts it
    assert torch.equal(batch["labels"], labels)
    with torch.no_grad():
        wanted = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        got = data.task.loss().mean(Forward(model, kind=get_kind("causal_lm"))(batch), batch)
    assert float(got) == pytest.approx(float(wanted), rel=1e-5)
    for name in ("select", "test"):
        theirs = data.splits[name].collate(range(3), device=CPU)
        assert torch.equal(found.splits[name].collate(range(3), device=CPU)["labels"], theirs["labels"])


def test_what_is_learnt_is_said_to_a_training(backbone: str, chats_file: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "recipe": RECIPE, "task": chats_file, "model": backbone, "steps": 1, "max_length": 48,
        "batch_size": 60,
    }  # fmt: skip
    answers = autopeft.train(**common, out=tmp_path / "answers")
    whole = autopeft.train(**common, learn_all=True, out=tmp_path / "whole")
    assert dict(whole.history.losses)[1] != pytest.approx(dict(answers.history.losses)[1], rel=1e-3)
    found = encode(load_task(chats_file), load_tokenizer(backbone), 48, learn_all=True)
    assert whole.task.metric == answers.task.metric
    assert int(found.train.labels.sum()) == len(found.train.ids) - len(found.train)


def test_other_kinds_have_no_tokens_to_learn(data: EncodedTask, tmp_path: Path) -> None:
    from support.saved_model import write_reviews

    task = load_task(str(write_reviews(tmp_path / "reviews.csv", rows=40)), text="body", label="verdict")
    tokenizer = load_tokenizer(str(save_backbone(tmp_path / "bert")))
    with pytest.raises(UsageError, match="--learn-all"):
        encode(task, tokenizer, 16, learn_all=True)
    with pytest.raises(UsageError, match="multiple_choice"):
        replace(data.train, kind="multiple_choice").all_learnt()


def test_answers_are_asked_row_for_row(backbone: str, chats_file: str, tmp_path: Path) -> None:
    found = autopeft.train(
        recipe=RECIPE, task=chats_file, model=backbone, steps=1, max_length=48, out=str(tmp_path / "run")
    )
    path = tmp_path / "more.jsonl"
    good = Path(chats_file).read_text().splitlines()[0]
    asked = '{"messages": [{"role": "user", "content": "what follows one"}]}'
    path.write_text(f'{good}\n{asked}\n{{"messages": [{{"role": "assistant", "content": ""}}]}}\n')
    first, second, third = autopeft.predict(found, path)
    assert first["tokens"] == 4
    assert first["perplexity"] > 1
    assert "loss" not in second
    assert {type(first["answer"]), type(second["answer"])} == {str}
    assert third["problem"]


def test_a_trained_hybrid_answers(backbone: str, chats_file: str, tmp_path: Path) -> None:
    found = autopeft.train(
        recipe=RECIPE, task=chats_file, model=backbone, steps=60, max_length=48, metric="exact_match",
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert found.scores["test"] >= 0.5
    assert autopeft.evaluate(tmp_path / "run").score == pytest.approx(found.scores["test"])
    answers = [row["answer"] for row in autopeft.predict(found, ["what follows one", "what is two"])]
    assert answers[0] in ("two", "three")
    assert [row["answer"] for row in autopeft.predict(tmp_path / "run", ["what follows one"])] == answers[:1]
    drawn = [
        autopeft.predict(found, ["what follows one"] * 8, temperature=5.0, seed=seed) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "made",
    [
        recipe(LORA),
        recipe(LORA, at=(0, 2)),
        recipe("serial_adapter"),
        recipe({"prefix_tuning": {"length": 3}}, at=(2,)),
        recipe(model=[{"prompt_tuning": {"length": 4}}]),
    ],
    ids=["lora", "lora below", "adapter", "prefix", "prompt"],
)
def test_only_what_is_read_is_projected(made: Recipe, backbone: str, data: EncodedTask) -> None:
    """Loss and gradients are those of the plain forward, whose logits have all positions."""
    with hybrid_on(backbone, made) as hybrid:
        wanted, gradients = loss_and_gradients(hybrid, Forward(hybrid.model), data)
        found, own = loss_and_gradients(hybrid, Forward(hybrid.model, kind=data.task.task_kind), data)
    assert found == pytest.approx(wanted, rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, atol=1e-6, rtol=1e-4), name


def test_the_cached_trunk_gives_the_same(backbone: str, data: EncodedTask) -> None:
    with hybrid_on(backbone, recipe(LORA)) as hybrid:
        forward = shortest_forward(hybrid, data, TrainingPlan(steps=1), dropout=False)
        assert forward.trunk is not None
        assert forward.trunk.depths == {"decoder": 2}
        assert forward.rows is not None, "a few tokens are learnt"
        wanted, gradients = loss_and_gradients(hybrid, Forward(hybrid.model), data)
        found, own = loss_and_gradients(hybrid, forward, data)
        assert found == pytest.approx(wanted, rel=1e-3), "states are kept in fp16"
        for name, gradient in gradients.items():
            assert torch.allclose(own[name], gradient, atol=1e-3 * float(gradient.abs().max())), name
        near = predict(hybrid.model, data.test, forward=forward)
        assert np.allclose(near, predict(hybrid.model, data.test), rtol=1e-3)


def test_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no language model: .*smollm2-135m"):
        get_kind("causal_lm").head.load_model(str(save_backbone(tmp_path / "bert")), ())


def test_a_checkpoint_without_what_predicts_tokens_is_refused(backbone: str, tmp_path: Path) -> None:
    """Drawn anew it would be frozen noise."""
    LlamaForCausalLM.from_pretrained(backbone).model.save_pretrained(tmp_path / "base")
    load_tokenizer(backbone).save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match=r"lm_head\.weight"):
        get_kind("causal_lm").head.load_model(str(tmp_path / "base"), ())


def test_what_does_not_fit_is_refused(chats_file: str) -> None:
    kind = get_kind("causal_lm")
    with pytest.raises(TaskError, match=r"\(rows, 3\).*\(2,\)"):
        kind.scorer.score(get_metric("likelihood"), np.zeros(2), np.zeros(2))
    with pytest.raises(TaskError, match="Class weights are for classification"):
        load_task(chats_file, class_weights="balanced")
    with pytest.raises(TaskError, match="accuracy"):
        load_task(chats_file, kind="causal_lm", metric="accuracy")


@pytest.mark.slow
def test_two_trials_of_a_search(backbone: str, chats_file: str, tmp_path: Path) -> None:
    found = autopeft.search(
        task=chats_file,
        model=backbone,
        budget="60%",
        space="lora",
        trials=2,
        effort="quick",
        confirm=1,
        confirm_seeds=1,
        max_length=48,
        batch_size=8,
        steps=20,
        out=str(tmp_path / "run"),
    )
    assert "head only" not in [baseline.name for baseline in found.baselines]
    assert found.baselines
    assert 0 < autopeft.evaluate(found).score < 1
