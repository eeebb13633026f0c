"""A whole search that returns a baseline whose runs are known from an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.saved_model import small_search

import autopeft
from autopeft.report.html import render_report
from autopeft.runs.folder import load_run
from autopeft.search.api import search

SPACE = """
autopeft: 2
name: idle
layers:
  - attach:
      - lora: {rank: {choice: [1, 2]}}
training: {learning_rate: 1.0e-9}
"""


def test_its_head_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the result, in the report and on the card of what is exported."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "idle.yaml").write_text(SPACE)
    arguments = small_search(
        tmp_path, space=str(tmp_path / "idle.yaml"), trials=2, steps=12, baselines="lora", workers=0,
        precision="fp32",
    )  # fmt: skip
    search(**arguments)
    result = search(**{**arguments, "out": str(tmp_path / "again")})
    assert result.number is None, "LoRA is returned"
    run = load_run(result.run)
    assert any(record.kept for record in run.finals().records)
    weights = load_file(run.winner / "weights.safetensors")
    head = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("head."))
    assert head == 2 * 32 + 2
    assert result.counts["head"] == run.result()["counts"]["head"] == head
    assert {baseline.counts["head"] for baseline in result.baselines} == {head}
    assert f'>head</td><td class="right">{head}</td>' in render_report(run)
    exported = autopeft.export(result, tmp_path / "exported", format="autopeft")
    assert f"| head | {head} |" in (exported.folder / "README.md").read_text()
