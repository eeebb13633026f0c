"""An encoder-decoder on the command line: searched, asked, talked with, and refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import run, run_here
from support.language import save_decoder, save_encoder_decoder, write_pairs

SMALL = (
    "--budget", "30%", "--effort", "quick", "--trials", "2", "--steps", "6", "--batch-size", "8",
    "--max-length", "32", "--workers", "0", "--baselines", "lora,untuned,few-shot",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_pairs(folder / "pairs.jsonl", 120)
    save_encoder_decoder(folder / "t5")
    save_decoder(folder / "llama")
    return folder


@pytest.mark.slow
def test_a_search_and_what_it_found(place: Path) -> None:
    done = run(place, "search", "--task", "pairs.jsonl", "--model", "t5", *SMALL, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "untuned backbone" in done.stdout
    assert "few-shot, 4 examples" in done.stdout
    result = json.loads((place / "run" / "result.json").read_text())
    assert [found["name"] for found in result["baselines"]][1:] == [
        "untuned backbone",
        "few-shot, 4 examples",
    ]
    manifest = json.loads((place / "run" / "manifest.json").read_text())
    assert manifest["data"]["kind"] == "seq2seq"
    asked = run(place, "predict", "run", "--text", "what follows one", "--beams", "2", "--json")
    assert asked.returncode == 0, asked.stderr
    assert set(json.loads(asked.stdout)[0]) == {"text", "answer"}
    talk = run(place, "chat", "run", text="what follows one\nwhat follows two\n")
    assert talk.returncode == 0, talk.stderr
    assert len(talk.stdout.splitlines()) == 2
    assert "Each message is answered by itself" in talk.stderr
    refused = run(place, "chat", "run", "--system", "be brief")
    assert refused.returncode == 2
    assert "leave out system (--system)" in refused.stderr


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        (
            "llama",
            "seq2seq",
            "'llama' has no encoder with a decoder, which seq2seq needs: learn the same rows with",
        ),
        pytest.param(
            "t5",
            "causal_lm",
            "'t5' is an encoder-decoder, and causal_lm is for decoders",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_kind_that_does_not_fit_is_one_sentence(place: Path, model: str, kind: str, said: str) -> None:
    done = run_here(place, "search", "--task", "pairs.jsonl", "--model", model, "--kind", kind, *SMALL)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {said}")
