from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny import tiny_model
from support.training import assert_same_state, encoded_task, snapshot, tiny_bert
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from autopeft.counting import Counts
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid
from autopeft.recipe import Recipe
from autopeft.training.errors import NonFiniteLoss
from autopeft.training.full_tuning import FullFineTuning
from autopeft.training.plan import TrainingPlan
from autopeft.training.scoring import predict
from autopeft.training.trial import full_fine_tuning, head_only, run_trial

PLAN = TrainingPlan(steps=5, batch_size=16, seed=2, device="cpu")
MIXED = Recipe.from_dict(
    {
        "name": "mixed",
        "layers": [
            {
                "attach": [
                    {"lora": {"rank": 2}},
                    {"prefix_tuning": {"length": 3}},
                    {"serial_adapter": {"bottleneck": 4}},
                    "ia3",
                ]
            }
        ],
        "model": [{"fish_mask": {"keep": 20, "samples": 8}}],
        "training": {"learning_rate": 1e-2, "policies": [{"lora_plus": {"ratio": 4}}]},
    }
)


@pytest.fixture
def restored() -> Any:
    """A model in mixed modes; everything of it must be as before when the test ends."""
    bert = tiny_bert()
    bert.bert.encoder.train()
    bert.bert.pooler.requires_grad_(False)
    before = snapshot(bert)
    flags = [(p.requires_grad, p.grad) for p in bert.parameters()]
    modes = [m.training for m in bert.modules()]
    config = bert.config.to_dict()
    yield bert
    assert_same_state(bert, before)
    assert [(p.requires_grad, p.grad) for p in bert.parameters()] == flags
    assert [m.training for m in bert.modules()] == modes
    assert bert.config.to_dict() == config
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bert.modules())


def test_a_trial_leaves_no_trace_and_repeats_bitwise(restored: Any) -> None:
    data = encoded_task()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first = run_trial(restored, MIXED, data, PLAN, splits=("select", "test"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(10)
    second = run_trial(restored, MIXED, data, PLAN, splits=("select", "test"))
    assert first.train.losses == second.train.losses
    assert first.scores == second.scores
    assert list(first.scores) == ["select", "test"]
    assert first.score == first.scores["select"]
    assert first.train.final_loss == first.train.losses[-1]
    assert run_trial(restored, MIXED, data, replace(PLAN, seed=3)).train.losses != first.train.losses


def test_the_order_of_trials_does_not_matter(restored: Any) -> None:
    data = encoded_task()
    alone = run_trial(restored, MIXED, data, PLAN)
    head_only(restored, data, PLAN)
    full_fine_tuning(restored, data, PLAN)
    assert run_trial(restored, MIXED, data, PLAN).train.losses == alone.train.losses


def test_an_error_in_the_middle_leaves_no_trace(restored: Any) -> None:
    def fail(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(restored, MIXED, encoded_task(), PLAN, on_step=fail)


def test_divergence_leaves_no_trace(restored: Any) -> None:
    wild = Recipe.from_dict(
        {
            "name": "wild",
            "layers": [{"attach": [{"lora": {"rank": 2, "alpha": 4096}}]}],
            "training": {"learning_rate": 10, "max_grad_norm": 0, "warmup": 0},
        }
    )
    poisoned = encoded_task(class_weights=[float("nan"), 1.0])
    with pytest.raises(NonFiniteLoss, match="at step 1"):
        run_trial(restored, wild, poisoned, PLAN)


def test_the_loss_of_a_split_is_that_of_its_predictions(restored: Any) -> None:
    data, seen = encoded_task(), dict[str, Any]()

    def keep(hybrid: Hybrid, scores: Mapping[str, float]) -> None:
        for name in ("select", "test"):
            split = data.splits[name]  # type: ignore[index]
            logits = torch.from_numpy(predict(hybrid.model, split))
            seen[name] = float(F.cross_entropy(logits, torch.from_numpy(split.labels)))

    outcome = run_trial(restored, MIXED, data, PLAN, splits=("select", "test"), keep=keep)
    assert outcome.losses == pytest.approx(seen, abs=1e-5)


def test_counts_are_the_hybrid_s(restored: Any) -> None:
    counts = run_trial(restored, MIXED, encoded_task(), replace(PLAN, steps=1)).counts
    assert counts.deployed > 0
    assert counts.head == 2 * 16 + 2


def test_keep_sees_the_trained_hybrid_and_its_scores(restored: Any) -> None:
    kept: dict[str, Any] = {}

    def keep(hybrid: Hybrid, scores: Mapping[str, float]) -> None:
        kept.update(
            attached=hybrid.attached, scores=dict(scores), head=hybrid.head_parameters()[0].detach().clone()
        )

    outcome = run_trial(restored, MIXED, encoded_task(), PLAN, keep=keep)
    assert kept["attached"]
    assert kept["scores"] == outcome.scores
    assert not torch.equal(kept["head"], restored.classifier.weight)


def test_the_head_starts_from_the_seed_not_from_where_it_stood(restored: Any) -> None:
    first = head_only(restored, encoded_task(), PLAN)
    kept = restored.classifier.weight.detach().clone()
    with torch.no_grad():
        restored.classifier.weight.fill_(1.0)
    second = head_only(restored, encoded_task(), PLAN)
    with torch.no_grad():
        assert bool((restored.classifier.weight == 1).all())
        restored.classifier.weight.copy_(kept)
    assert first.train.losses == second.train.losses


def test_head_only_trains_the_head_alone(restored: Any) -> None:
    trained: list[str] = []

    def look(step: int, loss: float) -> None:
        trained[:] = [name for name, p in restored.named_parameters() if p.requires_grad]

    outcome = head_only(restored, encoded_task(), PLAN, on_step=look, splits=("test",))
    assert trained == ["classifier.weight", "classifier.bias"]
    assert (outcome.counts.deployed, outcome.counts.trained) == (0, 0)
    assert list(outcome.scores) == ["test"]


def test_a_head_s_hidden_layers_have_their_rate_beside_the_whole_backbone() -> None:
    model = tiny_model("roberta")
    groups = {"head": {"learning_rate": 0.1}, "head.hidden": {"learning_rate": 0.01}}
    training = Recipe.from_dict({"name": "r", "training": {"groups": groups}}).training
    full = FullFineTuning(model, training)
    found = {g["name"]: (g["lr"], [id(p) for p in g["params"]]) for g in full.parameter_groups()}
    assert found["head"] == (0.1, [id(p) for p in model.classifier.out_proj.parameters()])
    assert found["head.hidden"] == (0.01, [id(p) for p in model.classifier.dense.parameters()])
    assert sum(len(params) for _, params in found.values()) == len(list(model.parameters()))


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_is_the_output_layer_too_is_the_backbone_s(tied: bool) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=tied,
        )
    )  # fmt: skip
    full = FullFineTuning(model, Recipe(name="r").training)
    base = sum(p.numel() for p in model.base_model.parameters())
    assert full.counts() == Counts(base, base, 0 if tied else 88, base)


def test_a_model_that_is_its_own_base_has_no_head() -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    full = FullFineTuning(model, Recipe(name="r").training)
    whole = sum(p.numel() for p in model.parameters())
    assert full.counts() == Counts(whole, whole, 0, whole)
    assert sum(p.numel() for g in full.parameter_groups() for p in g["params"]) == whole


def test_full_fine_tuning_moves_every_layer_and_puts_it_back(restored: Any) -> None:
    before = snapshot(restored)
    moved: set[str] = set()

    def look(step: int, loss: float) -> None:
        moved.update(n for n, p in restored.named_parameters() if not torch.equal(p, before[n]))

    outcome = full_fine_tuning(restored, encoded_task(), PLAN, on_step=look)
    used = {n for n, _ in restored.named_parameters()}
    assert moved == used
    assert outcome.counts.share == 1.0


def test_a_split_that_does_not_exist(restored: Any) -> None:
    with pytest.raises(UsageError, match="Did you mean 'select'"):
        run_trial(restored, MIXED, encoded_task(), PLAN, splits=("selct",))
    with pytest.raises(UsageError, match="splits='select'"):
        run_trial(restored, MIXED, encoded_task(), PLAN, splits="select")


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "roberta": {**SIZES, "intermediate_size": 24, "pad_token_id": 0, "max_position_embeddings": 40},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "pad_token_id": 0},
    "llama": {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "pad_token_id": 0},
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_trial_on_other_families(family: str) -> None:
    """Prefixes, low rank and a prompt; the loss falls and the model is as before."""
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "layers": [{"attach": [{"lora": {"rank": 2, "sites": ["o"]}}, {"p_tuning_v2": {"length": 2}}]}],
            "model": [{"prompt_tuning": {"length": 2}}],
            "training": {"learning_rate": 3e-2},
        }
    )
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, num_labels=2, **OTHERS[family])
    model = AutoModelForSequenceClassification.from_config(config)
    before = snapshot(model)
    result = run_trial(model, recipe, encoded_task(), replace(PLAN, steps=60)).train
    assert result.final_loss < 0.8 * result.losses[0]
    assert_same_state(model, before)


def test_many_trials_leave_no_trace(restored: Any) -> None:
    data = encoded_task()
    losses = {
        seed: run_trial(restored, MIXED, data, replace(PLAN, seed=seed)).train.losses for seed in range(10)
    }
    again = {
        seed: run_trial(restored, MIXED, data, replace(PLAN, seed=seed)).train.losses for seed in range(10)
    }
    assert losses == again
