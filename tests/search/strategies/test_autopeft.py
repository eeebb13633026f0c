"""AutoPEFT's own search: a preset of `trials`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.search.optimization.samplers import noisy_hypervolume
from autopeft.search.space.space import Space


def own_search(folder: Path, **more: Any) -> dict[str, Any]:
    small = small_search(folder, trials=6, steps=4, workers=0, baselines="none", strategy="autopeft", **more)
    return {name: value for name, value in small.items() if name != "space"} | {"budget": "100%"}


def test_the_spaces_sizes_on_24_layers() -> None:
    """Those on 12 and on 6 layers stand with the space's tests."""
    large = spec_of(BertConfig(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16))
    assert Space.named("autopeft").bind(large).cardinality() == 22_330_474_496


def test_it_is_trials_of_its_space_for_score_and_size_to_the_end(tmp_path: Path) -> None:
    search(**own_search(tmp_path, sampler="linear"))
    run = load_run(tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (recorded["sampler"], recorded["objective"]) == ("linear", "score,params")
    trials = run.lines("trials.jsonl")
    assert [t["state"] for t in trials] == ["complete"] * 6
    assert all(list(t["rungs"]) == ["4"] for t in trials)
    methods = {entry.method for t in trials for entry in Recipe.from_dict(t["recipe"]).entries()}
    assert methods <= {"serial_adapter", "parallel_adapter", "prefix_tuning"}


def test_without_botorch_it_says_what_to_install_or_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "autopeft.search.optimization.samplers.registry.find_spec",
        lambda name: None if name == "botorch" else find_spec(name),
    )
    with pytest.raises(UsageError, match=r"autopeft\[botorch\].*--sampler linear"):
        search(**own_search(tmp_path))


def test_its_sampler_wants_two_objectives(tmp_path: Path) -> None:
    pytest.importorskip("botorch")
    with pytest.raises(UsageError, match="--objective score,params"):
        search(**own_search(tmp_path, objective="score"))


def test_it_begins_with_points_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="chooses itself what it begins with"):
        search(**own_search(tmp_path, sampler="linear", warm_start=("mam",)))


def test_a_search_proposes_by_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("botorch")
    fits: list[int] = []
    fit = noisy_hypervolume.noisy_hypervolume

    def counted(points: Any, values: Any, *, seed: int) -> Any:
        fits.append(len(points))
        return fit(points, values, seed=seed)

    short = noisy_hypervolume.NUMBERS.model_copy(update={"warm_up": 16, "samples": 16})
    monkeypatch.setattr(noisy_hypervolume, "NUMBERS", short)
    monkeypatch.setattr(noisy_hypervolume, "noisy_hypervolume", counted)
    result = search(**own_search(tmp_path))
    assert fits == [3]
    assert result.winner is not None
