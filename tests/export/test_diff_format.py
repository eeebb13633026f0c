"""Diffs: in plain transformers they give the hybrid's own logits, and touch nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.saved_model import save_backbone, write_reviews
from support.tiny import LogitsObjective, logits, randomise, tiny_inputs, tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.errors import CompositionError
from autopeft.export.diff_format import diff_of
from autopeft.export.lora_factors import NotServable
from autopeft.export.package import find_saved, load_hybrid
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe

MASKS: list[Any] = [{"pafi": {"keep": 40}}, {"fish_mask": {"keep": 50, "samples": 2}}]


def _attached(name: str, model: list[Any], layers: list[Any] | None = None, **options: Any) -> Hybrid:
    body: dict[str, Any] = {"name": "d", "model": model, "layers": [{"attach": layers}] if layers else []}
    hybrid = attach(tiny_model(name, **options), Recipe.from_dict(body), seed=0)
    if hybrid.needs_prepare:
        batch = {**tiny_inputs(name), "labels": torch.zeros(2, dtype=torch.int64)}
        hybrid.prepare([batch], LogitsObjective(hybrid.model))
    for module in hybrid.modules.values():
        randomise(module)
    hybrid.model.eval()
    return hybrid


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_applied_it_gives_the_hybrids_logits_and_touches_nothing_else(name: str) -> None:
    hybrid, inputs = _attached(name, MASKS), tiny_inputs(name)
    expected, diff = logits(hybrid.model, inputs), diff_of(hybrid)
    both = {name for name, (index, _) in diff.entries.items() if len(index)}
    assert 50 <= diff.changed <= 90, "two masks on one tensor add, also where both chose one entry"
    plain = tiny_model(name)
    parameters, before = dict(plain.named_parameters()), dict(tiny_model(name).named_parameters())
    assert not torch.allclose(logits(plain, inputs), expected, atol=1e-4)
    with torch.no_grad():
        for key, (index, values) in diff.entries.items():
            assert values.dtype == torch.float32
            assert torch.equal(index, index.unique()), "positions rise"
            parameters[key].view(-1).index_add_(0, index, values)
        for key, value in diff.whole.items():
            parameters[key].copy_(value)
    torch.testing.assert_close(logits(plain, inputs), expected, atol=1e-5, rtol=1e-5)
    for key, parameter in parameters.items():
        same = parameter == before[key]
        if key in both:
            same.view(-1)[diff.entries[key][0].long()] = True
        assert key in diff.whole or bool(same.all()), key


def test_values_are_fp32_whatever_the_backbone_has() -> None:
    hybrid = _attached("bert", MASKS)
    half = _attached("bert", MASKS)
    half.model.to(torch.bfloat16)
    for module in half.modules.values():
        module.float()
    diffs = diff_of(hybrid), diff_of(half)
    for name, (_, values) in diffs[1].entries.items():
        assert values.dtype == torch.float32, name
    assert diffs[1].changed == diffs[0].changed


def test_what_is_no_change_of_tensors_is_refused() -> None:
    with pytest.raises(NotServable, match=r"serial_adapter .*is no change of the backbone's own tensors"):
        diff_of(_attached("bert", MASKS, [{"serial_adapter": {"bottleneck": 2}}]))


def test_what_acts_on_logits_is_refused() -> None:
    aligner = {"ipa": {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1}}
    with pytest.raises(CompositionError, match=r"^ipa acts on logits, and no tensor of the backbone"):
        diff_of(_attached("llama", [{"pafi": {"keep": 40}}, aligner]))


def test_what_is_larger_than_the_model_is_refused() -> None:
    every = {"lora": {"rank": 2, "sites": ["q", "k", "v", "o", "up", "down"]}}
    with pytest.raises(NotServable, match="larger than the model; export it with --as merged"):
        diff_of(_attached("bert", [], [every]))


def test_the_readme_applies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a checkpoint in bf16 too, whose rounding would swallow changes as small as these."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    kind = AutoModelForSequenceClassification
    kind.from_pretrained(save_backbone(tmp_path / "bert"), dtype=torch.bfloat16).save_pretrained("bert")
    write_reviews(tmp_path / "reviews.csv")
    body = {"name": "m", "model": [*MASKS, "bitfit"], "training": {"learning_rate": 2e-2}}
    autopeft.train(
        recipe=Recipe.from_dict(body),
        task="reviews.csv",
        text="body",
        label="verdict",
        model="bert",
        max_length=24,
        steps=8,
        batch_size=8,
        out="run",
    )
    found = autopeft.export("run", "out", format="diff")
    assert {"diff/diff.safetensors", "diff/README.md"} <= set(found.files)
    stored = load_file("out/diff/diff.safetensors")
    assert found.facts["bytes"] == sum(t.numel() * t.element_size() for t in stored.values())
    assert f"changes {found.facts['changed']:,} entries" in " ".join(found.lines)
    (code,) = re.findall(r"```python\n(.*?)```", Path("out/diff/README.md").read_text(), re.S)
    inputs = dict(AutoTokenizer.from_pretrained("bert")("the film was good", return_tensors="pt"))
    expected = logits(load_hybrid(find_saved("run"))[0].model, inputs)
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "out/diff")
    exec(code.replace("path/to/the/backbone", str(tmp_path / "bert")), names)
    torch.testing.assert_close(logits(names["model"].eval(), inputs), expected, atol=1e-5, rtol=1e-5)
