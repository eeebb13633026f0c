from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.saved_model import save_backbone

from autopeft.assets import ModelSource, load_model, load_tokenizer, resolve_model
from autopeft.errors import AssetError
from autopeft.search.execution import model_transfer
from autopeft.search.execution.model_transfer import ModelFiles, SentFiles, local_source, pack, receive


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model_transfer._SENT.clear()
    yield
    model_transfer._SENT.clear()


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return resolve_model(str(save_backbone(tmp_path / "driver" / "model")))


@pytest.fixture
def shipped(source: ModelSource) -> Callable[..., list[str]]:
    """Packs the source and announces it; returns a list that grows with each fetch."""

    def ship(change: Callable[[dict[str, NDArray[np.uint8]]], object] = lambda contents: None) -> list[str]:
        model_files = pack(source)
        assert model_files is not None
        contents = {name: data.copy() for name, data in model_files.contents.items()}
        files, fetched = model_files.files, list[str]()
        change(contents)

        def fetch() -> dict[str, NDArray[np.uint8]]:
            fetched.append("now")
            return contents

        receive(SentFiles(model_files.path, files, fetch))
        return fetched

    return ship


def test_a_backbone_arrives_where_it_was_not(
    source: ModelSource, shipped: Callable[..., list[str]], tmp_path: Path
) -> None:
    before = load_model(source).state_dict()
    fetched = shipped()
    shutil.rmtree(source.path)
    there = local_source(source)
    assert Path(there.path).is_relative_to(tmp_path / "cache")
    assert (there.origin, there.sha256) == (source.origin, source.sha256)
    after = load_model(there).state_dict()
    assert before.keys() == after.keys()
    assert all(before[k].equal(after[k]) for k in before)
    assert load_tokenizer(there)("good film")["input_ids"]
    assert local_source(source) == there
    assert len(fetched) == 1, "it is brought once to each machine"


def test_further_chat_templates_travel_too(source: ModelSource, shipped: Callable[..., list[str]]) -> None:
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(source.path)
    (Path(source.path) / "runs").mkdir()
    (Path(source.path) / "runs" / "notes.txt").write_text("mine", encoding="utf-8")
    shipped()
    shutil.rmtree(source.path)
    there = local_source(source)
    assert load_tokenizer(there).chat_template == tokenizer.chat_template
    assert not (Path(there.path) / "runs").exists()


@pytest.mark.parametrize(
    "name", ["../config.json", "runs/notes.txt", "additional_chat_templates/../../a.jinja", "/a.json"]
)
def test_nothing_is_written_elsewhere(
    source: ModelSource, shipped: Callable[..., list[str]], name: str
) -> None:
    model_files = pack(source)
    assert model_files is not None
    data = np.zeros(3, np.uint8)
    files = {**model_files.files, name: ModelFiles("", {name: data}).files[name]}
    contents = {**model_files.contents, name: data}
    receive(SentFiles(model_files.path, files, lambda: contents))
    Path(source.path, "config.json").unlink()
    with pytest.raises(AssetError, match="which it cannot have"):
        local_source(source)


def test_nothing_is_brought_where_the_same_files_are(
    source: ModelSource, shipped: Callable[..., list[str]]
) -> None:
    fetched = shipped()
    assert local_source(source) == source
    assert fetched == []


def test_another_model_under_the_same_path_is_not_taken(
    source: ModelSource, shipped: Callable[..., list[str]]
) -> None:
    shipped()
    shutil.rmtree(source.path)
    save_backbone(Path(source.path), seed=1)
    there = local_source(source)
    assert there.path != source.path
    with pytest.raises(AssertionError):
        assert_equal_weights(there, source)


def assert_equal_weights(a: ModelSource, b: ModelSource) -> None:
    first, second = (load_model(s).state_dict() for s in (a, b))
    assert all(first[k].equal(second[k]) for k in first)


def test_a_source_that_did_not_travel_stays_as_it_is() -> None:
    hub = ModelSource("bert-base-uncased", None, "hub", None)
    assert pack(hub) is None
    assert local_source(hub) == hub


def test_only_files_of_a_model_travel(source: ModelSource, tmp_path: Path) -> None:
    folder = Path(source.path)
    for name in ("pytorch_model.bin", "modeling.py", "weights.pkl", "readme.md"):
        (folder / name).write_bytes(b"x")
    (folder / "deeper.json").mkdir()
    (folder / "empty.txt").touch()
    model_files = pack(source)
    assert model_files is not None
    assert {"config.json", "model.safetensors", "tokenizer.json", "empty.txt"} <= set(model_files.contents)
    assert {Path(name).suffix for name in model_files.contents} <= {".json", ".safetensors", ".txt"}
    assert "deeper.json" not in model_files.contents


def test_links_travel_as_what_they_point_to(source: ModelSource, tmp_path: Path) -> None:
    """As in the folders of the hub's client."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in Path(source.path).iterdir():
        (folder / file.name).symlink_to(file)
    linked = pack(ModelSource(str(folder), None, "hub", None))
    plain = pack(source)
    assert linked is not None
    assert plain is not None
    assert linked.files == plain.files


def test_a_large_backbone_does_not_travel(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_transfer, "_LARGEST", 1000)
    assert pack(source) is None


def test_what_was_damaged_is_refused_and_leaves_nothing(
    source: ModelSource, shipped: Callable[..., list[str]], tmp_path: Path
) -> None:
    def flip(contents: dict[str, NDArray[np.uint8]]) -> None:
        contents["model.safetensors"][-1] ^= 1

    def cut(contents: dict[str, NDArray[np.uint8]]) -> None:
        contents["model.safetensors"] = contents["model.safetensors"][:-1]

    for change in (flip, cut, lambda contents: contents.pop("config.json")):
        shipped(change)
        shutil.move(source.path, f"{source.path}-away")
        with pytest.raises(AssetError, match="damaged on its way"):
            local_source(source)
        assert list((tmp_path / "cache" / "shipped").iterdir()) == []
        shutil.move(f"{source.path}-away", source.path)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "model.py", "a/b.json"])
def test_names_that_no_model_has_are_refused(name: str, tmp_path: Path) -> None:
    data = np.frombuffer(b"{}", np.uint8)
    sent = SentFiles("nowhere", ModelFiles("nowhere", {name: data}).files, lambda: {name: data})
    receive(sent)
    with pytest.raises(AssetError, match="cannot have"):
        local_source(ModelSource("nowhere", None, "folder", None))
    assert not list(tmp_path.rglob("*evil*"))


def test_a_cache_without_room_is_a_clear_error(
    source: ModelSource, shipped: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped()
    shutil.rmtree(source.path)
    monkeypatch.setattr(model_transfer, "_CACHE", 1000)
    with pytest.raises(AssetError, match="set AUTOPEFT_CACHE"):
        local_source(source)


def test_a_cut_off_copy_in_the_cache_is_replaced(
    source: ModelSource, shipped: Callable[..., list[str]]
) -> None:
    fetched = shipped()
    shutil.rmtree(source.path)
    there = Path(local_source(source).path)
    (there / "model.safetensors").write_bytes(b"cut")
    assert local_source(source).path == str(there)
    assert (there / "model.safetensors").stat().st_size > 3
    assert len(fetched) == 2
