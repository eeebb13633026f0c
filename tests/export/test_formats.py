"""Formats that others load: what is written gives the hybrid's logits there, and the card says how."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from support.gguf_models import as_gguf
from support.language import save_decoder, word_tokenizer, write_chats
from support.saved_model import save_backbone, write_reviews
from support.tiny import randomise, tiny_config, tiny_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

import autopeft
from autopeft.cli import main
from autopeft.errors import CompositionError, UsageError
from autopeft.export.arguments import FORMAT_NAMES, ExportArguments
from autopeft.export.formats import FORMATS, Export, make_ready
from autopeft.export.gguf_format import write_gguf
from autopeft.export.lora_factors import NotServable
from autopeft.export.lora_weights import lora_weights
from autopeft.export.merged_format import merge
from autopeft.export.package import find_saved, load_hybrid
from autopeft.recipe import Recipe
from autopeft.runs.markdown import plain

EXACT = [{"lora": {"rank": 3, "sites": ["q", "k", "up"]}}, {"ia3": {"sites": ["v", "down"]}}]
SINGLE = [{"adalora": {"rank": 2, "sites": ["q"]}}]  # every format says it
ADAPTER = [{"lora": {"rank": 2}}, {"serial_adapter": {"bottleneck": 4}}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained runs: of a decoder `exact`, `adapter` and `single`, and of a classifier `classes`."""
    folder = tmp_path_factory.mktemp("home")
    save_decoder(folder / "llama")
    save_backbone(folder / "bert")
    write_chats(folder / "chats.jsonl", 80)
    write_reviews(folder / "reviews.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        for name, layers in (("exact", EXACT), ("adapter", ADAPTER), ("single", SINGLE)):
            train(name, layers, task="chats.jsonl", model="llama", max_length=32)
        train("classes", EXACT, task="reviews.csv", text="body", label="verdict", model="bert", max_length=24)
    return folder


def train(name: str, layers: list[Any], **more: Any) -> None:
    body = {"name": name, "layers": [{"attach": layers}], "training": {"learning_rate": 2e-2}}
    autopeft.train(recipe=Recipe.from_dict(body), steps=8, batch_size=8, out=name, **more)


@pytest.fixture(autouse=True)
def _here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


def as_export(run: str) -> Export:
    saved = find_saved(run)
    hybrid, source = load_hybrid(saved)
    return Export(saved.folder, ExportArguments(), saved, hybrid, source)


def batch(words: str = "user what is follows three") -> dict[str, Tensor]:
    return dict(word_tokenizer()(words, return_tensors="pt"))


def hybrid_logits(run: str, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = load_hybrid(find_saved(run))[0].model(**inputs).logits
    return found


def logits_of(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(**inputs).logits
    return found


def test_names_are_those_that_are_offered() -> None:
    assert ("autopeft", *FORMATS) == FORMAT_NAMES


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_file_of_every_format_has_the_mode_of_a_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for name in FORMAT_NAMES:
            autopeft.export("single", tmp_path / name, format=name)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".gguf", ".json", ".yaml", ".md"}
    assert {str(p): stat.S_IMODE(p.stat().st_mode) for p in files} == {str(p): mode for p in files}


def test_a_merged_language_model_needs_nothing_of_ours(tmp_path: Path) -> None:
    found = autopeft.export("exact", tmp_path / "out", format="merged")
    assert "merged/model.safetensors" in found.files
    merged = tmp_path / "out/merged"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    inputs = dict(tokenizer("user what is follows three", return_tensors="pt"))
    expected = hybrid_logits("exact", inputs)
    assert not torch.allclose(
        expected, logits_of(AutoModelForCausalLM.from_pretrained("llama"), inputs), atol=0.1
    )
    torch.testing.assert_close(logits_of(model, inputs), expected, atol=1e-5, rtol=1e-5)
    card = (tmp_path / "out/README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("merged")' in card
    assert "vllm serve merged" in card


def test_a_merged_language_model_ends_its_answers_where_it_was_trained_to(tmp_path: Path) -> None:
    found = autopeft.export("exact", tmp_path / "out", format="merged")
    assert not found.lines, "its generation configuration says it"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged")
    assert model.generation_config.eos_token_id == [3, 5], "</s>, and <|end|>, which the template writes"
    inputs = batch()
    with torch.no_grad():  # a head that writes <|end|>
        last = model.model(**inputs).last_hidden_state[0, -1]
        model.lm_head.weight.zero_()[5] = last
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert written.tolist() == [5]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lora", ("eos_token_id=[3, 5]", '"stop_token_ids": [5]')),
        ("gguf-lora", ("eot_token_id=int:5",)),
    ],
)
def test_beside_the_backbone_its_answers_end_is_told(
    name: str, told: tuple[str, ...], tmp_path: Path
) -> None:
    found = autopeft.export("exact", tmp_path / "out", format=name)
    assert "token 5 (<|end|>)" in found.lines[-1]
    assert all(word in found.lines[-1] for word in told)
    assert plain(found.lines[-1]) in (tmp_path / "out/README.md").read_text()


def test_a_merged_classifier_has_its_head_and_its_labels(tmp_path: Path) -> None:
    autopeft.export("classes", tmp_path / "out", format="merged")
    merged = tmp_path / "out/merged"
    model = AutoModelForSequenceClassification.from_pretrained(merged)
    assert model.config.id2label == {0: "no", 1: "yes"}
    inputs = dict(AutoTokenizer.from_pretrained(merged)("the film was good", return_tensors="pt"))
    torch.testing.assert_close(
        logits_of(model, inputs), hybrid_logits("classes", inputs), atol=1e-5, rtol=1e-5
    )


def test_vllm_is_named_for_decoders_alone(tmp_path: Path) -> None:
    """Encoders with the head of a masked language model have output embeddings too."""
    masked = BertForMaskedLM(tiny_config("bert"))
    masked.save_pretrained(tmp_path / "masked")
    hybrid = autopeft.attach(
        BertForMaskedLM.from_pretrained(tmp_path / "masked"),
        Recipe.from_dict({"name": "s", "layers": [{"attach": ["lora"]}]}),
    )
    saved = find_saved(hybrid.save(tmp_path / "hybrid"))
    live, source = load_hybrid(saved, model=str(tmp_path / "masked"))
    assert not Export(saved.folder, ExportArguments(), saved, live, source).is_decoder
    assert as_export("exact").is_decoder
    assert not as_export("classes").is_decoder


@pytest.mark.parametrize("name", ["lora", "gguf-lora"])
def test_a_backbone_that_was_decoded_is_not_called_by_the_hub_s_name(name: str) -> None:
    own = as_export("exact")
    decoded = replace(own, source=replace(own.source, alias="smollm2-135m"))
    assert decoded.base == "path/to/smollm2-135m"
    ready = make_ready(name, decoded)
    (note,) = [line for line in ready.lines if "smollm2-135m" in line]
    assert "not those of HuggingFaceTB/SmolLM2-135M-Instruct" in note
    assert plain(note) in ready.section
    assert not any("smollm2" in line for line in make_ready(name, own).lines)
    assert not any("smollm2" in line for line in make_ready("merged", decoded).lines)


def test_what_does_not_merge_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CompositionError, match="serial_adapter cannot be folded"):
        autopeft.export("adapter", tmp_path / "out", format="merged")
    assert not (tmp_path / "out").exists()


def test_biases_that_a_configuration_cannot_say_are_refused() -> None:
    hybrid = autopeft.attach(
        tiny_model("t5"), Recipe.from_dict({"name": "s", "layers": [{"attach": [{"ssf": {"sites": ["q"]}}]}]})
    )
    with pytest.raises(
        NotServable, match="needs biases that the configuration of T5ForConditionalGeneration"
    ):
        merge(hybrid)


def test_an_exact_lora_in_peft(tmp_path: Path) -> None:
    found = autopeft.export("exact", tmp_path / "out", format="lora")
    assert found.facts["exact"]
    assert found.facts["cost"] is None
    assert {one["state"] for one in found.facts["vllm"]} == {"kept"}
    assert any(line.startswith("vLLM takes it.") for line in found.lines)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("llama"), tmp_path / "out/lora")
    torch.testing.assert_close(
        logits_of(loaded, batch()), hybrid_logits("exact", batch()), atol=1e-5, rtol=1e-5
    )
    card = (tmp_path / "out/README.md").read_text()
    assert "--enable-lora --lora-modules hybrid=lora --max-lora-rank 32" in card
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["exported"]["format"] == "lora"
    again = autopeft.export(tmp_path / "out", tmp_path / "again", format="autopeft")
    assert "exported" not in json.loads((again.folder / "manifest.json").read_text())


def test_a_classifier_s_lora_holds_its_head(tmp_path: Path) -> None:
    found = autopeft.export("classes", tmp_path / "out", format="lora")
    base = AutoModelForSequenceClassification.from_pretrained("bert", num_labels=2)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out/lora")
    inputs = dict(AutoTokenizer.from_pretrained("bert")("the film was good", return_tensors="pt"))
    torch.testing.assert_close(
        logits_of(loaded, inputs), hybrid_logits("classes", inputs), atol=1e-5, rtol=1e-5
    )
    told = "For vLLM: The adapter holds classifier, and vLLM takes no modules_to_save"
    assert told in " ".join(found.lines)
    assert "modules\\_to\\_save" in (tmp_path / "out/README.md").read_text()


def test_what_an_approximation_costs_is_told_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["export", "adapter", "-o", out, "--as", "lora", "--rank", "4", "--json"]) == 0
    written, told = capsys.readouterr()
    facts = json.loads(written)["facts"]
    assert facts["cut_to"] == 4
    assert "A LoRA is fitted on " in told
    assert f"A LoRA of rank 4: likelihood {facts['cost']['after']['score']:.4f}" in told
    assert set(facts["fitted"].values()) == {f"serial_adapter at decoder.{i}.ffn" for i in range(3)}
    before, after = facts["cost"]["before"], facts["cost"]["after"]
    assert before["loss"] != after["loss"]
    card = (tmp_path / "out/README.md").read_text()
    assert f"the loss is {after['loss']:.4f} and {before['loss']:.4f}" in card
    assert json.loads((tmp_path / "out/manifest.json").read_text())["exported"]["cost"] == facts["cost"]


def test_without_its_rows_no_approximation_is_made(home: Path, tmp_path: Path) -> None:
    (home / "chats.jsonl").rename(home / "gone.jsonl")
    try:
        with pytest.raises(NotServable, match="measured on rows of its task"):
            autopeft.export("adapter", tmp_path / "out", format="lora")
    finally:
        (home / "gone.jsonl").rename(home / "chats.jsonl")
    assert not (tmp_path / "out").exists()


# GGUF
# ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Values and tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    return {key: one.contents() for key, one in reader.fields.items()}, {
        t.name: t.data for t in reader.tensors
    }


def test_base_and_lora_in_gguf_are_the_hybrid(tmp_path: Path) -> None:
    found = autopeft.export("exact", tmp_path / "out", format="gguf-lora")
    assert "gguf-lora/adapter.gguf" in found.files
    values, tensors = read(tmp_path / "out/gguf-lora/adapter.gguf")
    told = {k: values[k] for k in ("general.type", "general.architecture", "adapter.type", "general.name")}
    assert told == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "general.name": "exact",
    }  # fmt: skip
    alpha, changes = values["adapter.lora.alpha"], {}
    for name in {key.rpartition(".")[0] for key in tensors}:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        assert a.shape[0] == b.shape[1]
        changes[name] = b @ a * (alpha / b.shape[1])  # as llama.cpp scales it
    assert len({t.shape[0] for n, t in tensors.items() if n.endswith("lora_a")}) > 1, "ranks differ"
    base = LlamaForCausalLM.from_pretrained("llama").eval()
    as_gguf(base, tmp_path / "plain.gguf", {})
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="plain.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits_of(plain, batch()), logits_of(base, batch()), atol=1e-5, rtol=1e-5)
    as_gguf(base, tmp_path / "changed.gguf", changes)
    changed = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="changed.gguf", dtype=torch.float32)
    torch.testing.assert_close(
        logits_of(changed, batch()), hybrid_logits("exact", batch()), atol=1e-5, rtol=1e-5
    )
    assert (
        "llama-cli -m backbone.gguf --lora gguf-lora/adapter.gguf" in (tmp_path / "out/README.md").read_text()
    )


def test_what_gguf_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotServable, match="this is 'bert'"):
        autopeft.export("classes", tmp_path / "out", format="gguf-lora")
    assert not (tmp_path / "out").exists()
    model = LlamaForSequenceClassification(tiny_config("llama"))
    hybrid = autopeft.attach(model, Recipe.from_dict({"name": "s", "layers": [{"attach": ["lora"]}]}))
    randomise(hybrid.root)
    with pytest.raises(NotServable, match="trained head"):
        write_gguf(model, lora_weights(hybrid), tmp_path)


@pytest.mark.parametrize("name", [None, *(n for n in FORMAT_NAMES if n not in ("lora", "gguf-lora"))])
def test_a_rank_is_refused_where_no_lora_is_written(name: str | None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="written with --as lora or gguf-lora"):
        autopeft.export("exact", tmp_path / "out", format=name, rank=4)
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'merged'"):
        autopeft.export("exact", tmp_path / "out", format="mergd")
