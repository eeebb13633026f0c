"""The cost of a language model's step: its arithmetic, and a whole run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder, write_chats

FOLDER = "language_model_step"
Import = Callable[[str], Any]
Script = Callable[..., str]


@pytest.mark.slow
def test_steps_of_every_side(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "step.json"
    model, rows = save_decoder(tmp_path / "llama"), write_chats(tmp_path / "chats.jsonl", 80)
    script(
        "--model", str(model), "--task", str(rows), "--ks", "0,2", "--steps", "3", "--drop", "1", "--repeats",
        "2", "--batch-size", "4", "--rows", "40", "--max-length", "48", "--profile", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert [row["k"] for row in found["measured"]] == [0, 2]
    for row in found["measured"]:
        assert list(row["sides"]) == ["ours", "plain", "trainer"]
        losses = {name: side["runs"][0]["loss"] for name, side in row["sides"].items()}
        assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-3)
        assert all(len(run["ms"]) == 3 for side in row["sides"].values() for run in side["runs"])
    assert [profile["k"] for profile in found["profiles"]] == [0, 2]
