"""What is cut from a large hybrid, what goes back to it, and the training of a supernet's members."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.supernet import PLAN, recipe, same
from support.training import encoded_task, tiny_bert

from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training import Checkpoint, run_trial
from autopeft.training.loop import train
from autopeft.training.shared_weights import SharedWeights, trained_names


def trained_to(step: int) -> SharedWeights:
    """A training that paused at a step."""
    names: list[str] = []
    outcome = run_trial(
        tiny_bert(),
        recipe(),
        encoded_task(),
        PLAN,
        until=step,
        keep=lambda hybrid, scores: names.extend(trained_names(hybrid)),
    )
    assert isinstance(outcome.train.checkpoint, Checkpoint)
    return SharedWeights(outcome.train.checkpoint, names)


# What is cut
# ----------------------------------------------------------------------------------------------------------


def test_what_is_cut_is_the_leading_part_of_values_and_moments() -> None:
    shared = trained_to(16)
    with attach(tiny_bert(), recipe(lora=2, ia3=False), seed=9) as hybrid:
        small = shared.cut(hybrid, {"low": "low", "adapter": "adapter"}, {"low": 0.25})
        now = trained_names(hybrid)
        small.fill(hybrid)
    for i, name in enumerate(now):
        j = shared.trained.index(name)
        old, new = shared.checkpoint.tensors, small.tensors
        z = 0.25 if ".low." in name and name.endswith(".B") else 1.0
        n = tuple(slice(k) for k in new[f"optimizer.{i}.exp_avg"].shape)
        torch.testing.assert_close(
            new[f"optimizer.{i}.exp_avg"] * z, old[f"optimizer.{j}.exp_avg"][n], rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            new[f"optimizer.{i}.exp_avg_sq"] * z * z, old[f"optimizer.{j}.exp_avg_sq"][n], rtol=1e-6, atol=0
        )
        if name.startswith("module."):
            torch.testing.assert_close(new[name], z * old[name][n], rtol=1e-6, atol=0)
    assert not [key for key in small.tensors if "ia3" in key]
    assert sum(key.startswith("optimizer.") for key in small.tensors) == 3 * len(now)


def test_a_training_goes_on_from_a_cut_as_if_nothing_had_happened() -> None:
    """With gates of 1 and nothing cut, steps after the cut are those of a training without."""
    data, shared = encoded_task(), trained_to(8)
    whole = run_trial(tiny_bert(), recipe(), data, PLAN)
    gone_on = run_trial(
        tiny_bert(), recipe(), data, PLAN, resume=lambda hybrid: shared.cut(hybrid, same(hybrid))
    )
    assert gone_on.train.losses == whole.train.losses
    assert gone_on.scores == whole.scores


def test_what_has_no_part_in_what_was_trained_starts_as_it_is() -> None:
    shared = trained_to(8)
    with attach(tiny_bert(), recipe(lora=8), seed=5) as hybrid:
        expected = {k: v.clone() for k, v in hybrid.modules["low"].state_dict().items()}
        grown = shared.cut(hybrid, same(hybrid))
        grown.fill(hybrid)
        assert all(torch.equal(v, hybrid.modules["low"].state_dict()[k]) for k, v in expected.items())
        train(hybrid, encoded_task(), replace(PLAN, steps=10), resume=grown)


def test_leading_slices_give_the_outputs_of_each_rank() -> None:
    """Numbers of the equation: A = [[1, 0], [0, 1], [1, 1]], B = [[1, 2, 3], [0, 1, 0]], x = (1, 2)."""

    def of(rank: int) -> Recipe:
        item = {"lora": {"rank": rank, "alpha": float(rank), "sites": ["q"]}, "as": "low"}
        return Recipe.from_dict({"name": "r", "layers": [{"at": [0], "attach": [item]}]})

    A, B, x = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[1.0, 2, 3], [0, 1, 0]]), [1.0, 2]
    with attach(tiny_bert(), of(3), seed=0) as hybrid:
        state = dict(hybrid.root.named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                value.zero_()
                small = A if name.endswith("A") else B
                value[: small.shape[0], : small.shape[1]] = small
        shared = SharedWeights.of(hybrid, PLAN)
    for rank, expected in ((1, (1.0, 0.0)), (2, (5.0, 2.0)), (3, (14.0, 2.0))):
        model, seen = tiny_bert(), []
        bare = model.bert.encoder.layer[0].attention.self.query
        with attach(model, of(rank), seed=1) as hybrid:
            shared.cut(hybrid, same(hybrid)).fill(hybrid)
            given = torch.zeros(1, 1, bare.in_features)
            given[0, 0, :2] = torch.tensor(x)
            seen.append((bare(given) - torch.nn.functional.linear(given, bare.weight, bare.bias))[0, 0, :2])
        assert seen[0].tolist() == pytest.approx(expected, abs=1e-5), rank
