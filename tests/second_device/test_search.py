"""A search on the second device, in processes of its own: torch finds the device where it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.saved_model import save_backbone, write_reviews

import autopeft
from autopeft.runs.folder import load_run

FOLDER = Path(__file__).parents[1] / "support" / "second_device"
DATA = ("--task", "reviews.csv", "--text", "body", "--label", "verdict", "--model", "bert")
SMALL = (
    *("--budget", "20%", "--space", "lora", "--trials", "3", "--steps", "6", "--max-length", "24"),
    *("--batch-size", "8", "--baselines", "head", "--seed", "0"),
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    return tmp_path


def command(place: Path, *words: str, fails: bool = False, **more: str) -> str:
    environment = {
        **os.environ,
        "AUTOPEFT_CACHE": str(place / "cache"),
        "PYTHONPATH": str(FOLDER),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", *words], cwd=place, env=environment, capture_output=True, text=True
    )
    assert bool(done.returncode) == fails, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_search_in_this_process_exports_and_predicts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(place / "cache"))
    result = autopeft.search(
        task="reviews.csv", text="body", label="verdict", model="bert", budget="20%", space="lora", trials=2,
        steps=6, max_length=24, batch_size=8, baselines="none", device="acc", workers=0, out="run",
    )  # fmt: skip
    assert all(trial.state == "complete" for trial in result.trials)
    assert load_run("run").manifest()["training"]["device"] == "acc"
    autopeft.export("run", "exported", device="acc")
    there, here = (
        autopeft.predict("exported", ["a good film"], device=device)[0] for device in ("acc", "cpu")
    )
    assert there["label"] == here["label"]


@pytest.mark.slow
def test_a_search_exports_and_predicts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = command(place, "search", *DATA, *SMALL, "--device", "acc", "--workers", "1", "--out", "run")
    run = load_run(place / "run")
    assert all(record.state == "complete" for record in run.trials().records), out
    manifest = run.manifest()
    assert (manifest["arguments"]["device"], manifest["training"]["device"]) == ("acc", "acc")
    assert manifest["platform"]["gpu"] == "a second device for tests"
    log = next((place / "run" / "logs").glob("trial-*.txt"))
    assert "CUDA_VISIBLE_DEVICES" not in log.read_text()

    command(place, "export", "run", "-o", "exported", "--device", "acc")
    assert (place / "exported" / "weights.safetensors").exists()
    asked = ("predict", "exported", "--text", "a good film", "--device", "acc", "--json")
    (answer,) = json.loads(command(place, *asked).split("\n{")[0])
    monkeypatch.chdir(place)
    (here,) = autopeft.predict("exported", ["a good film"], device="cpu")
    assert answer["label"] == here["label"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "acc:3", "--workers", "0"), "no device 'acc:3' here; there is cpu, acc"),
        (("--device", "acc:0", "--workers", "1"), "take 'acc'"),
        (("--device", "cpu", "--gpus-per-trial", "0.5"), "contradict each other"),
        (("--device", "abacus"), "Here there is cpu, acc"),
    ],
)
def test_what_cannot_be_is_refused(place: Path, words: tuple[str, ...], said: str) -> None:
    assert said in " ".join(command(place, "search", *DATA, *SMALL, *words, fails=True).split())
