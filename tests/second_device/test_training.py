"""Whole trainings on the second device: what they lose, score, keep and answer is what the CPU gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.language import save_decoder, save_encoder_decoder, write_chats, write_pairs
from support.pictures import save_vit, write_pictures
from support.saved_model import save_backbone, write_reviews
from support.several_labels import write_labelled
from support.spans import write_questions
from support.supernet import member, of_noah
from support.training import encoded_task, tiny_bert
from support.words import write_tagged

import autopeft
from autopeft.hybrid import Hybrid
from autopeft.recipe import Recipe
from autopeft.tasks import load_task, task_set
from autopeft.training import Checkpoint, TrainingPlan, TrialOutcome, run_trial
from autopeft.training.gates import BilevelGates, Gates, Gating
from autopeft.training.shared_weights import SharedWeights, trained_names
from autopeft.training.supernet import Member, train_supernet

PLAN = TrainingPlan(steps=6, batch_size=16, seed=2, device="cpu")
LORA: dict[str, Any] = {"lora": {"rank": 2}}


def recipe(*layers: Any, model: tuple[Any, ...] = (), at: Any = "all", **training: Any) -> Recipe:
    """A recipe of what its layers and the model get."""
    body: dict[str, Any] = {"name": "r", "training": {"learning_rate": 1e-2, **training}}
    if layers:
        body["layers"] = [{"at": at, "attach": list(layers)}]
    return Recipe.from_dict(body | ({"model": list(model)} if model else {}))


WAYS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "plain": (recipe(LORA, "ia3", {"serial_adapter": {"bottleneck": 4}}), {"shortcuts": False}),
    "gradients of several micro-batches": (recipe(LORA), {"micro_batch": 3}),
    "states of layers that nothing alters": (recipe(LORA, at="last 1"), {}),
    "a gate": (recipe({"gate": [LORA, {"prefix_tuning": {"length": 2}}]}), {}),
    "a chain": (recipe({"chain": ["ia3", LORA]}), {}),
    "a route": (
        recipe({"route": {"children": [LORA, "ia3"], "top_k": 1, "renormalize": False}}),
        {},
    ),
    "phases": (recipe(model=({"xprompt": {"length": 4, "pieces": 4, "init": "uniform"}},)), {}),
    "a search for entries": (recipe(model=({"lt_sft": {"keep": 40}},)), {}),
    "noise of gates": (recipe(model=({"u_diff_pruning": {"keep": 40}},)), {}),
    "calibration": (recipe(model=({"fish_mask": {"keep": 40, "samples": 8}},)), {}),
    "events": (recipe({"adalora": {"rank": 2}}), {}),
    "policies": (recipe(LORA, policies=[{"lora_plus": {"ratio": 4}}]), {}),
    "Adafactor": (recipe(LORA, optimizer={"name": "adafactor"}), {}),
    "memory is saved": (recipe(LORA), {"memory_saving": True}),
    "a head from a probe": (recipe(LORA), {"head_start": "probe"}),
    "early stopping": (recipe(LORA), {"eval_every": 2, "patience": 1}),
}


def outcome(way: Recipe, plan: TrainingPlan, **options: Any) -> TrialOutcome:
    return run_trial(tiny_bert(), way, encoded_task(), plan, splits=("select",), **options)


RARE = ("events", "policies", "Adafactor", "memory is saved", "early stopping", "a chain")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in RARE else ()) for name in WAYS]
)
def test_losses_and_scores_are_those_of_the_cpu(name: str, acc: torch.device) -> None:
    way, options = WAYS[name]
    plan = replace(PLAN, **options)
    expected, found = outcome(way, plan), outcome(way, replace(plan, device=acc.type))
    assert found.train.losses == expected.train.losses
    assert found.scores == expected.scores
    assert found.train.memory is None
    assert expected.train.memory is not None


def test_gates_learn_and_blocks_are_cut_as_on_the_cpu(acc: torch.device) -> None:
    way = recipe({"lora": {"rank": 4}, "as": "low"}, {"ia3": {}, "as": "vectors"}, schedule="constant")
    gating = Gating({"low": 0, "vectors": 1}, (512, 160), 200.0, first=1, last=4, new=2, held_out=0.2)
    found = []
    for device in ("cpu", acc.type):
        gates, names, plan = Gates(way, gating), list[str](), replace(PLAN, device=device)

        def keep(hybrid: Hybrid, scores: object, names: list[str] = names) -> None:
            names.extend(trained_names(hybrid))

        begun = outcome(way, plan, until=4, policies=[gates], keep=keep).train.checkpoint
        assert begun is not None

        def resume(hybrid: Hybrid, begun: Checkpoint = begun, names: list[str] = names) -> Checkpoint:
            return SharedWeights(begun, names).cut(hybrid, {"low": "low"}, {"low": gates.history[-1][0]})  # noqa: B023

        rest = outcome(recipe({"lora": {"rank": 2}, "as": "low"}), plan, resume=resume)
        found.append((gates.history, rest.train.losses, rest.scores))
    assert found[0] == found[1]
    assert found[0][0][1] != found[0][0][2] != found[0][0][3]


def test_gates_of_two_levels_learn_as_on_the_cpu(acc: torch.device) -> None:
    way = recipe({"lora": {"rank": 4}, "as": "low"}, {"ia3": {}, "as": "vectors"})
    gating = Gating({"low": 0, "vectors": 1}, (512, 160), 200.0, first=0, last=6, new=0, held_out=0.5)
    found = []
    for device in ("cpu", acc.type):
        gates = BilevelGates(way, gating, seed=1)
        ended = outcome(way, replace(PLAN, device=device, eval_every=2), policies=[gates])
        found.append((gates.history, ended.train.losses, ended.train.scores))
    assert found[0] == found[1]
    assert found[0][0][0] != found[0][0][-1]


NOAH = [of_noah(4), of_noah(2), of_noah(3, "prompt"), of_noah(1, "low", "adapter")]


@pytest.mark.parametrize(
    "members", [[member(), member(lora=2), member(adapter=1, ia3=False)], NOAH], ids=["gates", "noah"]
)
def test_members_of_a_supernet_train_as_on_the_cpu(members: list[Member], acc: torch.device) -> None:
    found = [
        train_supernet(
            tiny_bert(), members[0].recipe, encoded_task(), replace(PLAN, device=device), members, rate=0.5
        )
        for device in ("cpu", acc.type)
    ]
    one, other = (shared.checkpoint for shared in found)
    assert one.losses == other.losses
    kept = {key for key in one.tensors if not key.startswith("generator.")}
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in kept)


def test_bf16_computes_as_on_the_cpu(acc: torch.device) -> None:
    losses = [
        run_trial(tiny_bert().to(torch.bfloat16), recipe(LORA), encoded_task(), plan).train.losses
        for plan in (PLAN, replace(PLAN, device=acc.type))
    ]
    assert losses[1] == pytest.approx(losses[0], abs=2e-2)


def test_what_is_drawn_on_it_repeats_and_is_its_own(acc: torch.device) -> None:
    way = recipe({"lora": {"rank": 2, "dropout": 0.4}}, dropout=True)
    there = replace(PLAN, device=acc.type)
    model, module = tiny_bert(), torch.get_device_module(acc)
    before = torch.get_rng_state(), module.get_rng_state()
    first, second = (run_trial(model, way, encoded_task(), there, splits=("select",)) for _ in range(2))
    assert first.train.losses == second.train.losses
    assert all(map(torch.equal, before, (torch.get_rng_state(), module.get_rng_state())))
    torch.rand(3, device=acc)
    assert torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.parametrize("drawn", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
@pytest.mark.parametrize(("before", "after"), [("acc", "cpu"), ("cpu", "acc"), ("acc", "acc")])
def test_a_training_goes_on_elsewhere(before: str, after: str, drawn: float) -> None:
    way = recipe({"lora": {"rank": 2, "dropout": drawn}})
    whole = outcome(way, replace(PLAN, device=after))
    first = outcome(way, replace(PLAN, device=before), until=3)
    assert first.train.checkpoint is not None
    kept = Checkpoint.from_bytes(first.train.checkpoint.to_bytes())
    assert {tensor.device.type for tensor in kept.tensors.values()} == {"cpu"}
    rest = outcome(way, replace(PLAN, device=after), resume=kept)
    if before == after or not drawn:
        assert rest.train.losses == whole.train.losses
    assert len(rest.train.losses) == PLAN.steps


# Every kind of task
# --------------------------------------------------------------------------------------------------------


def _numbers(path: Path) -> Path:
    rows = [{"text": f"{'good ' * (i % 7)}film", "label": i % 7 / 2} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _choices(path: Path) -> Path:
    rows = [
        {"question": f"what follows {w}", "choices": [n, "nine"], "answer": 0}
        for w, n in (("one", "two"), ("two", "three"), ("three", "four"), ("four", "five")) * 12
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], dict[str, Any]]] = {
    "classification": (save_backbone, lambda f: write_reviews(f / "rows.csv"), {}),
    "regression": (save_backbone, lambda f: _numbers(f / "rows.jsonl"), {"kind": "regression"}),
    "multi_label": (save_backbone, lambda f: write_labelled(f / "rows.jsonl"), {}),
    "token_classification": (save_backbone, lambda f: write_tagged(f / "rows.jsonl"), {}),
    "question_answering": (save_backbone, lambda f: write_questions(f / "rows.jsonl"), {}),
    "image_classification": (save_vit, lambda f: write_pictures(f / "rows"), {}),
    "causal_lm": (save_decoder, lambda f: write_chats(f / "rows.jsonl"), {}),
    "seq2seq": (save_encoder_decoder, lambda f: write_pairs(f / "rows.jsonl"), {}),
    "multiple_choice": (save_decoder, lambda f: _choices(f / "rows.jsonl"), {"kind": "multiple_choice"}),
    "label words": (
        save_decoder,
        lambda f: write_reviews(f / "rows.csv"),
        {"text": "body", "label": "verdict", "label_words": ["one", "two"]},
    ),
}
TEXTS = {
    "classification": {"text": "body", "label": "verdict"},
    "question_answering": {},
}


# Their rows go the ways of the others.
LIKE_OTHERS = ("regression", "multi_label", "multiple_choice", "label words", "seq2seq")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in LIKE_OTHERS else ()) for k in KINDS]
)
def test_each_kind_of_task_is_trained_scored_and_asked(
    kind: str, acc: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    save, write, options = KINDS[kind]
    save(tmp_path / "model")
    rows = write(tmp_path)
    given: dict[str, Any] = {
        "task": str(rows), "model": "model", "recipe": recipe(LORA), "steps": 4, "batch_size": 8,
        "max_length": 24, **TEXTS.get(kind, {}), **options,
    }  # fmt: skip
    there = autopeft.train(**given, device="cpu", out="there")
    here = autopeft.train(**given, device="acc", out="here")
    assert there.task.kind.partition("?")[0] == {"label words": "classification"}.get(kind, kind)
    assert here.hybrid.model.device == acc
    # To the last bit, but where torch composes a backward on the device that the CPU fuses (SiLU's).
    assert _losses(here) == pytest.approx(_losses(there), abs=2e-6 if save is save_decoder else 0.0)
    assert here.scores == pytest.approx(there.scores, abs=1e-4)
    for run, device in (("here", "cpu"), ("there", "acc")):  # saved on one, scored on the other
        score = autopeft.evaluate(run, split="select", device=device).score
        assert score == pytest.approx(there.scores["select"], abs=1e-4)
    if kind not in ("question_answering", "image_classification", "multiple_choice"):
        asked = there.task.splits["test"].texts[:3]
        answers = [autopeft.predict("here", asked, device=device) for device in ("cpu", "acc")]
        assert [_shown(a) for a in answers[0]] == [_shown(a) for a in answers[1]]


def _losses(outcome: Any) -> list[float]:
    return [loss for _, loss in outcome.history.losses]


def _shown(answer: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in answer.items() if isinstance(v, str)}


def test_a_set_of_tasks_is_trained(
    acc: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    save_backbone(tmp_path / "model")
    tasks = [
        load_task(str(write_reviews(tmp_path / "reviews.csv")), text="body", label="verdict"),
        load_task(str(_numbers(tmp_path / "numbers.jsonl")), kind="regression"),
    ]
    given: dict[str, Any] = {"model": "model", "recipe": recipe(LORA), "steps": 4, "batch_size": 8}
    losses = [
        _losses(autopeft.train(task=task_set(tasks), **given, device=device, out=device))
        for device in ("cpu", "acc")
    ]
    assert losses[0] == losses[1]
