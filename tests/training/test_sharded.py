"""Trials over two processes on the CPU: the same as in one, with half of the layers in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sharding import HYBRID, Seen, full, save_language, trained, wandering, written
from support.training import tiny_bert

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.training.processes import Processes
from autopeft.training.sharded import shard

# DoRA begins with norms of whole weights and alters them, BitFit alters biases.
WEIGHTS = {
    "name": "weights",
    "layers": [{"attach": [{"dora": {"rank": 2}}]}],
    "model": ["bitfit"],
    "training": {"learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language(tmp_path_factory.mktemp("language"))


def assert_same(one: Seen, both: Seen) -> None:
    assert (one.peers, both.peers) == (1, 2)
    assert both.losses == pytest.approx(one.losses, abs=1e-5)
    assert len(set(one.losses)) > 1, "nothing was learnt"
    assert both.scores == pytest.approx(one.scores, abs=1e-5)
    assert one.parameters.keys() == both.parameters.keys()
    for name, expected in one.parameters.items():
        torch.testing.assert_close(both.parameters[name], expected, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("recipe", "plan"),
    [
        (HYBRID, {}),
        pytest.param(
            HYBRID, {"micro_batch": 3, "memory_saving": True, "eval_every": 3}, marks=pytest.mark.slow
        ),
        pytest.param(WEIGHTS, {"batch_size": 5}, marks=pytest.mark.slow),
    ],
    ids=["hybrid", "in-parts", "weights"],
)
def test_a_classifier_is_trained_as_in_one_process(
    two: Processes, recipe: Mapping[str, Any], plan: dict[str, Any]
) -> None:
    """45 rows leave a batch of 5 in each epoch, which two processes do not share evenly."""
    assert_same(trained(None, recipe, plan), two.run(trained, None, recipe, plan))


def test_a_language_model_is_trained_as_in_one_process(two: Processes, folder: Path) -> None:
    """Each process has other numbers of tokens that count."""
    assert_same(trained(folder), two.run(trained, folder))


@pytest.mark.slow
def test_what_is_written_is_the_same(two: Processes, folder: Path) -> None:
    plan = {"steps": 3}
    metric: tuple[Any, ...] = (folder, HYBRID, plan, ("select",), "exact_match")
    assert two.run(trained, *metric).scores == trained(*metric).scores


def test_an_encoder_is_called_alone_before_the_whole_model(two: Processes) -> None:
    """As the untuned backbone and a saved hybrid are, where the metric compares texts."""
    (texts, one), (same, both) = written("t5"), two.run(written, "t5")
    assert same == texts
    assert any(bool(gradient.any()) for gradient in one)
    torch.testing.assert_close(both, one, atol=1e-4, rtol=1e-4)


def test_each_process_holds_about_half_of_the_layers(two: Processes, folder: Path) -> None:
    for place in (None, folder):
        found = two.run(trained, place, HYBRID, {"steps": 1})
        assert found.held / found.layers == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"model": [{"fish_mask": {"keep": 20}}]}, "fish_mask is calibrated on the whole backbone"),
        ({"model": [{"lt_sft": {"keep": 20}}]}, "lt_sft trains in phases of its own"),
        ({"model": [{"infoprompt": {}}]}, "infoprompt has a term of the loss that is of all rows"),
    ],
)
def test_what_needs_all_of_the_backbone_or_of_the_rows_is_refused(
    two: Processes, item: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=f"2 processes.*{why}.*--processes-per-trial 1"):
        two.run(trained, None, {"name": "x", **item})
    assert two.alive, "all refused it together, and go on"


def test_full_fine_tuning_is_refused(two: Processes) -> None:
    with pytest.raises(UsageError, match="trains the whole backbone"):
        two.run(full)


def test_values_that_come_apart_are_an_error(two: Processes) -> None:
    with pytest.raises(AutoPEFTError, match=r"different values of lora\.\S+: something in the recipe"):
        two.run(wandering)


def test_a_model_is_sharded_in_several_processes_alone() -> None:
    with pytest.raises(UsageError, match=r"Processes\.run"):
        shard(tiny_bert())
