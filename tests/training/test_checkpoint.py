from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cases import INPUTS, ON_ENCODERS, recipe_of
from support.training import assert_same_state, encoded_task, snapshot, tiny_bert

from autopeft.errors import DataError, UsageError
from autopeft.recipe import Recipe
from autopeft.training import Checkpoint, TrainingPlan, full_fine_tuning, run_trial

PLAN = TrainingPlan(steps=9, batch_size=16, micro_batch=8, seed=2, device="cpu")
ALL: dict[str, Recipe] = {
    "mixed": Recipe.from_dict(
        {
            "name": "mixed",
            "layers": [
                {"attach": [{"lora": {"rank": 2, "dropout": 0.3}}, {"prefix_tuning": {"length": 2}}, "ia3"]}
            ],
            "model": [{"fish_mask": {"keep": 20, "samples": 8}}],
            "training": {
                "learning_rate": 1e-2, "schedule": "cosine", "warmup": 0.3, "dropout": True,
                "policies": [{"lora_plus": {"ratio": 4}}],
            },
        }
    )
}  # fmt: skip


def biased() -> Any:
    """A tiny BERT whose biases are not zero, as after pretraining: HiWi reads them."""
    model = tiny_bert()
    for name, parameter in model.base_model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


OPTIMIZERS: dict[str, dict[str, object]] = {
    "adamw": {"betas": [0.9, 0.98], "epsilon": 1e-6, "clip": "group"},
    "adam": {"name": "adam"},
    "sgd": {"name": "sgd"},
    "momentum": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adafactor": {"name": "adafactor"},
    "adafactor-scaled": {"name": "adafactor", "scale_parameter": True},
}


def optimized(name: str) -> Recipe:
    """Methods that multiply, that add and that do both, with decay and a part at a rate of its own."""
    return Recipe.from_dict(
        {
            "name": name,
            "layers": [{"attach": ["ia3", "dora", {"lora": {"rank": 2}}, "dylora"]}],
            "training": {
                "learning_rate": 1e-2, "weight_decay": 0.1, "optimizer": OPTIMIZERS[name],
                "groups": {"lora.up": {"learning_rate": 2e-2}},
            },
        }
    )  # fmt: skip


# Trainings in stages can only be started anew.
SEARCHING = ("lt-sft", "u-diff-pruning", "s-diff-pruning", "u-bitfit", "s-bitfit")
STAGED = ("periodic-lora", "autolora", "far", "far-rest", "tpt", "xprompt", "selective-prompt", *SEARCHING)
ALL.update({case: recipe_of(case) for case in ON_ENCODERS})
PROMPT = {"spot": {"length": 4}, "from": "source"}
ALL["from another"] = Recipe.from_dict({"inputs": {"source": INPUTS["source"]}, "model": [PROMPT]})
ALL.update({f"by {name}": optimized(name) for name in OPTIMIZERS})


@pytest.mark.parametrize("name", STAGED)
def test_a_training_in_stages_pauses_without_a_checkpoint(name: str) -> None:
    first = run_trial(tiny_bert(), ALL[name], encoded_task(), PLAN, until=4)
    assert (first.train.stopped, first.train.steps, first.train.checkpoint) == ("paused", 4, None)


@pytest.mark.parametrize("name", [*SEARCHING, "far"])
@pytest.mark.parametrize("until", [1, 4])
def test_where_a_pause_has_no_way_back_what_acts_is_what_is_counted(name: str, until: int) -> None:
    """A search for entries trains more of them than it leaves; a rung has to score what it leaves."""
    seen: list[tuple[int, int]] = []

    def keep(hybrid: Any, scores: Any) -> None:
        (module,) = hybrid.modules.values()
        parameters = sum(p.numel() for p in module.parameters())
        seen.append((parameters, hybrid.counts().deployed))

    run_trial(tiny_bert(), ALL[name], encoded_task(), PLAN, until=until, keep=keep)
    ((parameters, counted),) = seen
    assert parameters == counted


# Every eighth method by default; the rest are slow.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if i % 8 else ())
        for i, name in enumerate(name for name in ALL if name not in STAGED)
    ],
)
def test_a_paused_training_goes_on_bitwise_as_if_it_had_not_stopped(name: str) -> None:
    model, data, recipe = biased(), encoded_task(), ALL[name]
    saved: list[dict[str, torch.Tensor]] = []
    keep: Any = lambda hybrid, scores: saved.append(snapshot(hybrid.model))  # noqa: E731
    whole = run_trial(model, recipe, data, PLAN, keep=keep)
    before = snapshot(model)
    first = run_trial(model, recipe, data, PLAN, until=4)
    assert (first.train.stopped, first.train.steps) == ("paused", 4)
    assert first.train.checkpoint is not None
    assert_same_state(model, before)
    torch.manual_seed(99)  # another process starts from another state
    kept = Checkpoint.from_bytes(first.train.checkpoint.to_bytes())
    second = run_trial(model, recipe, data, PLAN, until=7, resume=kept)
    assert second.train.checkpoint is not None
    kept = Checkpoint.from_bytes(second.train.checkpoint.to_bytes())
    last = run_trial(model, recipe, data, PLAN, resume=kept, keep=keep)
    assert last.train.losses == whole.train.losses
    assert (last.train.stopped, last.train.checkpoint) == ("done", None)
    assert last.scores == whole.scores
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][k], saved[1][k]) for k in saved[0])


def test_scores_from_before_a_pause_are_told_with_the_others() -> None:
    model, data, plan = tiny_bert(), encoded_task(), replace(PLAN, eval_every=2)
    whole = run_trial(model, ALL["mixed"], data, plan)
    first = run_trial(model, ALL["mixed"], data, plan, until=5)
    assert first.train.checkpoint is not None
    kept = Checkpoint.from_bytes(first.train.checkpoint.to_bytes())
    last = run_trial(model, ALL["mixed"], data, plan, resume=kept)
    assert [step for step, _ in last.train.scores] == [2, 4, 6, 8]
    assert last.train.scores == whole.train.scores


def test_on_a_backbone_in_bf16_what_an_optimizer_keeps_is_as_fine_as_before() -> None:
    model, data, recipe = tiny_bert(), encoded_task(), optimized("adafactor")
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    straight = run_trial(model, recipe, data, PLAN, until=6).train.checkpoint
    paused = run_trial(model, recipe, data, PLAN, until=4).train.checkpoint
    again = run_trial(model, recipe, data, PLAN, until=6, resume=paused).train.checkpoint
    assert straight is not None
    assert again is not None
    assert again.to_bytes() == straight.to_bytes()


def test_equal_states_give_equal_bytes() -> None:
    model, data = tiny_bert(), encoded_task()
    one, two = (run_trial(model, ALL["mixed"], data, PLAN, until=3).train.checkpoint for _ in range(2))
    assert one is not None
    assert two is not None
    assert one.to_bytes() == two.to_bytes()
    other = run_trial(model, ALL["mixed"], data, replace(PLAN, seed=3), until=3).train.checkpoint
    assert other is not None
    assert other.to_bytes() != one.to_bytes()


def test_a_growing_share_of_the_rows_goes_on_from_what_was_learnt() -> None:
    model, data = tiny_bert(), encoded_task()
    small = replace(PLAN, train_share=0.25)
    first = run_trial(model, ALL["lora"], data, small, until=4).train
    assert first.checkpoint is not None
    same = run_trial(model, ALL["lora"], data, small, resume=first.checkpoint).train
    grown = run_trial(model, ALL["lora"], data, PLAN, resume=first.checkpoint).train
    assert grown.losses[:4] == same.losses[:4] == first.losses
    assert grown.losses[4] != same.losses[4]
    assert same.losses == run_trial(model, ALL["lora"], data, small).train.losses
    # A second pause after the share has grown keeps to the new share's own order of rows.
    again = run_trial(model, ALL["lora"], data, PLAN, resume=first.checkpoint, until=6).train
    assert again.checkpoint is not None
    assert run_trial(model, ALL["lora"], data, PLAN, resume=again.checkpoint).train.losses == grown.losses


def test_a_checkpoint_of_another_recipe_is_refused_and_the_model_is_as_before() -> None:
    model, data = tiny_bert(), encoded_task()
    before = snapshot(model)
    kept = run_trial(model, ALL["lora"], data, PLAN, until=3).train.checkpoint
    with pytest.raises(DataError, match="does not fit the modules"):
        run_trial(model, ALL["dora"], data, PLAN, resume=kept)
    with pytest.raises(DataError, match="does not fit the head"):
        run_trial(tiny_bert(num_labels=3), ALL["lora"], encoded_task(), PLAN, resume=kept)
    assert_same_state(model, before)


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    model, data = tiny_bert(), encoded_task()
    kept = run_trial(model, optimized("adafactor"), data, PLAN, until=3).train.checkpoint
    assert kept is not None
    read = Checkpoint.from_bytes(kept.to_bytes())
    assert read.optimizer == "adafactor"
    with pytest.raises(DataError, match="optimizer is adafactor, but the recipe's is sgd"):
        run_trial(model, optimized("sgd"), data, PLAN, resume=read)


def test_pauses_that_make_no_sense_are_refused() -> None:
    model, data = tiny_bert(), encoded_task()
    kept = run_trial(model, ALL["lora"], data, PLAN, until=3).train.checkpoint
    for until, resume, text in ((0, None, "pause"), (10, None, "pause"), (3, kept, "pause")):
        with pytest.raises(UsageError, match=text):
            run_trial(model, ALL["lora"], data, PLAN, until=until, resume=resume)
    with pytest.raises(UsageError, match="nothing is left"):
        run_trial(model, ALL["lora"], data, replace(PLAN, steps=2), resume=kept)
    with pytest.raises(UsageError, match="patience"):
        run_trial(model, ALL["lora"], data, replace(PLAN, eval_every=1, patience=2), until=3)
    assert run_trial(model, ALL["lora"], data, PLAN, until=9).train.stopped == "done"
    assert full_fine_tuning(model, data, PLAN).train.stopped == "done"


@given(st.binary(max_size=200) | st.integers(0, 3000))
def test_damaged_bytes_are_an_error_and_nothing_else(damage: bytes | int) -> None:
    if isinstance(damage, int):
        whole = Checkpoint({"module.a": torch.ones(3)}, (0.5,), 8).to_bytes()
        damage = whole[: damage % len(whole)]
    with pytest.raises(DataError):
        Checkpoint.from_bytes(damage)
