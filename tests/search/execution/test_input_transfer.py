"""What recipes start from reaches workers wherever they run."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import load_model, resolve_model
from autopeft.errors import DataError
from autopeft.hybrid import attach, with_inputs
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import TrainJob
from autopeft.search.execution import input_transfer
from autopeft.search.execution.input_transfer import opened, pack_inputs
from autopeft.search.execution.worker import WorkerSetup, execute
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan

LORA: dict[str, Any] = {"lora": {"rank": 2}}
FROZEN = {**LORA, "from": "a", "frozen": True}


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerSetup:
    """Of a driver in a folder where the saved hybrid `source` lies."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "driver"
    place.mkdir()
    monkeypatch.chdir(place)
    model = str(save_backbone(tmp_path / "model"))
    with attach(load_model(model), Recipe.from_dict({"layers": [{"attach": [LORA]}]}), seed=7) as hybrid:
        for parameter in hybrid.root.parameters():
            torch.nn.init.normal_(parameter)
        hybrid.save("source")
    task = load_task(str(write_reviews(tmp_path / "data.csv")), text="body", label="verdict")
    plan = TrainingPlan(steps=1, batch_size=8, max_length=32)
    return WorkerSetup(model, resolve_model(model), task, plan, threads=1, key=str(tmp_path))


def packed() -> tuple[Recipe, Any]:
    recipe, inputs = with_inputs(
        Recipe.from_dict({"inputs": {"a": "source"}, "layers": [{"attach": [FROZEN]}]})
    )
    return recipe, pack_inputs(inputs.values())


def test_a_job_starts_from_its_input_in_another_folder(
    setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, files = packed()
    source = load(Path("source/weights.safetensors").read_bytes())
    job = TrainJob("j", "trial", "x", recipe.to_dict(), steps=2, keep_above=-1.0)
    there = pickle.loads(pickle.dumps(replace(setup, inputs=files)))
    monkeypatch.chdir(tmp_path)
    result = execute(there, job, lambda step, loss: None, lambda: False)
    assert result.error is None, result.error
    saved = load(result.files["weights.safetensors"])
    names = [name for name in source if not name.startswith("head.")]
    assert names
    assert all(torch.equal(saved[name], source[name]) for name in names), "frozen values are the source's"
    assert Recipe.from_yaml(result.files["recipe.yaml"].decode()) == recipe
    lacking = execute(replace(there, inputs={}), job, lambda step, loss: None, lambda: False)
    assert "did not travel" in str(lacking.error)


def test_the_job_checks_what_arrived(setup: WorkerSetup) -> None:
    recipe, files = packed()
    ((sha256, content),) = files.items()
    other = bytearray(content["weights.safetensors"])
    other[-1] ^= 1
    with (
        pytest.raises(DataError, match="was altered"),
        opened(recipe, {sha256: {**content, "weights.safetensors": bytes(other)}}),
    ):
        pass
    with opened(recipe, files) as found:
        folder = found[sha256].folder
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert not folder.exists()


def test_a_content_travels_once_and_not_without_end(
    setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{**LORA, "from": name} for name in ("a", "b")]
    tree = {"inputs": {"a": "source", "b": {"folder": "source"}}, "layers": [{"attach": items}]}
    _, inputs = with_inputs(Recipe.from_dict(tree))
    assert len(pack_inputs(inputs.values())) == 1
    monkeypatch.setattr(input_transfer, "_MOST", 1000)
    with pytest.raises(DataError, match="at most"):
        pack_inputs(inputs.values())
