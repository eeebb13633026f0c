"""The cost of a training step: its arithmetic, and a whole run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny import tiny_model
from support.training import encoded_task

from autopeft.hybrid import attach
from autopeft.method import get_method, method_names
from autopeft.recipe.tasks import acts_by_task

FOLDER = "training_step"
Import = Callable[[str], Any]
Script = Callable[..., str]


def test_texts_are_longer_by_their_own_tokens_and_go_in_the_same_batches(load: Import) -> None:
    data = encoded_task(train=40)
    longer = load("prompt_steps").lengthened(data, 7)
    before, after = data.train, longer.train
    assert np.array_equal(after.lengths, before.lengths + 7)
    assert longer.max_length == data.max_length + 7
    for i in range(len(before)):
        plain = before.ids[before.offsets[i] : before.offsets[i + 1]]
        found = after.ids[after.offsets[i] : after.offsets[i + 1]]
        assert found[0] == plain[0]
        assert np.array_equal(found[8:], plain[1:])
        assert set(found) == set(plain)
    for one, other in zip(
        before.batch_indices(8, shuffle=True), after.batch_indices(8, shuffle=True), strict=True
    ):
        assert np.array_equal(one, other)


def test_every_prompt_and_prefix_of_the_registry_is_measured(load: Import, tmp_path: Path) -> None:
    module = load("prompt_steps")
    found = module.soft_prompts(Path("source"), 32)
    assert set(found) == {
        n for n in method_names() if get_method(n).traits.ways & {"prompt", "kv"} and not acts_by_task(n)
    }
    rows = {"prompt_tuning": 20, "p_tuning_v2": 4, "apt": 4, "lpt": 5, "selective_prompt": 5, "aprompt": 20}
    for name, count in rows.items():
        with attach(tiny_model("bert"), found[name], seed=0) as hybrid:
            assert module.rows_of(hybrid) == count


@pytest.mark.slow
def test_steps_of_prompts_beside_lora(script: Script, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "prompts.json"
    options = ["--steps", "2", "--drop", "1", "--repeats", "2", "--batch-size", "8", "--rows", "64"]
    methods = "prompt_tuning,xprompt,tpt"
    script(*tiny, *options, "--prompts", "--methods", methods, "--max-length", "24", "--out", str(out))
    found = json.loads(out.read_text())["prompts"]
    phases = [(row["method"], row["phase"].split()[0], row["rows"]) for row in found]
    assert phases == [
        ("prompt_tuning", "training", 20),
        ("tpt", "project", 20),
        ("tpt", "tune", 20),
        ("xprompt", "tune", 20),
        ("xprompt", "retrain", 10),
    ]
    assert all(row["times_lora"]["count"] == 2 for row in found)
    script("--prompts", "--tables", "--out", str(out))


@pytest.mark.slow
def test_steps_of_every_side(script: Script, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    options = ["--steps", "3", "--pad-steps", "2", "--pad", "24", "--repeats", "2", "--batch-size", "8"]
    sides = "ours,dynamic,pad,bare,grouped"
    script(
        *tiny, *options, "--sides", sides, "--ks", "0,2", "--rows", "64", "--max-length", "24",
        "--profile", "--profile-steps", "2", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert [row["k"] for row in found["steps"]] == [0, 2]
    for row in found["steps"]:
        assert list(row["sides"]) == sides.split(",")
        assert all(len(run["ms"]) == 3 for run in row["sides"]["dynamic"]["runs"])
        assert all(len(run["ms"]) == 2 for run in row["sides"]["pad"]["runs"])
    groups = found["profiles"][0]["groups"]
    assert {"autopeft", "torch", "transformers", "torch operators"} <= groups.keys()
    assert sum(groups.values()) == pytest.approx(1.0, abs=0.2)
