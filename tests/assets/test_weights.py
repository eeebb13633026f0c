from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.classifiers import classifier

from autopeft.assets import backbone_fingerprint, map_weights
from autopeft.assets import weights as mapped
from autopeft.hybrid import attach
from autopeft.recipe import Recipe

LORA = Recipe.from_dict(
    {"autopeft": 2, "name": "l", "layers": [{"at": "all", "attach": [{"lora": {"rank": 2}}]}]}
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))


def mappings_of(file: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(file))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_nothing_but_the_place_changes(name: str, tmp_path: Path) -> None:
    model, reference = classifier(name), classifier(name)
    parameters = dict(model.named_parameters())
    assert map_weights(model)
    (file,) = tmp_path.glob("weights/*/tensors")
    assert mappings_of(file) >= 1
    for key, expected in reference.named_parameters():
        assert model.get_parameter(key) is parameters[key]
        assert torch.equal(parameters[key], expected)
        assert parameters[key].data_ptr() % 64 == 0 or key not in dict(model.base_model.named_parameters())
    assert backbone_fingerprint(model) == backbone_fingerprint(reference)


def test_what_is_written_stays_in_the_process(tmp_path: Path) -> None:
    first, second = classifier("bert"), classifier("bert")
    assert map_weights(first)
    assert map_weights(second)
    (file,) = tmp_path.glob("weights/*/tensors")
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert file.read_bytes() == before
    assert all(
        torch.equal(p, q) for p, q in zip(second.parameters(), classifier("bert").parameters(), strict=True)
    )


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    assert map_weights(classifier("bert"))
    (file,) = tmp_path.glob("weights/*/tensors")
    with file.open("r+b") as out:
        out.seek(100)
        out.write(b"\x01\x02\x03")
    model = classifier("bert")
    assert not map_weights(model)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), classifier("bert").parameters(), strict=True)
    )
    assert not file.exists()
    assert map_weights(classifier("bert"))


def test_without_room_or_folder_the_weights_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_LARGEST", 1000)
    assert not map_weights(classifier("bert"))
    monkeypatch.setattr(mapped, "_LARGEST", 1 << 40)
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "file"))
    assert not map_weights(classifier("bert"))


def test_the_fingerprint_is_the_backbones_alone() -> None:
    model = classifier("bert")
    mark = backbone_fingerprint(model)
    with torch.no_grad():
        model.get_parameter("classifier.weight").add_(1.0)
    model.config.problem_type = "regression"
    assert backbone_fingerprint(model) == mark
    with attach(model, LORA, seed=0):
        assert backbone_fingerprint(model) == mark
    with torch.no_grad():
        model.base_model.get_parameter("pooler.dense.bias")[3] += 1e-6
    assert backbone_fingerprint(model) != mark
    assert len({backbone_fingerprint(classifier("bert", seed=s)) for s in (0, 1)} | {mark}) == 2
    half = classifier("bert")
    assert backbone_fingerprint(half.to(torch.bfloat16)) != mark  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["a fused optimizer", "data"])
def test_the_fingerprint_sees_what_raises_no_version(how: str) -> None:
    model = classifier("bert")
    mark = backbone_fingerprint(model)
    if how == "data":
        model.base_model.get_parameter("pooler.dense.bias").data.add_(1.0)
    else:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.parameters(), fused=True).step()
    found = backbone_fingerprint(model)
    assert found != mark
    assert found == backbone_fingerprint(copy.deepcopy(model))
