"""What is measured on a GPU: a dry run on the second device of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder, write_chats

FOLDER = "gpu"
SMALL = (
    *(
        "--steps",
        "2",
        "--drop",
        "1",
        "--repeats",
        "1",
        "--rows",
        "64",
        "--trials",
        "2",
        "--search-steps",
        "2",
    ),
    *("--device", "acc", "--no-compile"),
)
Script = Callable[..., str]


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts that are started find the second device."""
    place = Path(__file__).parents[2] / "tests" / "support" / "second_device"
    monkeypatch.setenv("PYTHONPATH", str(place))


@pytest.mark.slow
@pytest.mark.usefixtures("declared")
def test_a_dry_run_measures_all_parts(script: Script, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "card.json"
    _, model, _, rows = tiny
    own = ("--own", model, rows, "classification", "--precisions", "fp32,bf16", "--at-once", "1,2")
    script(*own, *SMALL, "--out", str(out))
    found = json.loads(out.read_text())
    assert found["card"] == "a second device for tests"
    (measured,) = found["subjects"].values()
    assert measured["equality"]["from_cpu"] < 1e-4
    assert measured["equality"]["from_itself"] == 0
    assert [(row["precision"], row["k"]) for row in measured["step"]] == [
        (precision, k) for precision in ("fp32", "bf16") for k in (0, 1, 2)
    ]
    for row in measured["step"]:
        assert set(row["sides"]) == {"ours", "trainer"}
    assert [row["at_once"] for row in measured["search"]] == [1, 2]
    assert all(row["trainings"] >= 3 and row["failed"] == 0 for row in measured["search"])
    taken = json.loads((tmp_path / measured["memory"]["file"]).read_text())["measured"]
    assert len(taken) > 50
    assert all(
        run["memory"] is None and run["step_time"] > 0 for row in taken.values() for run in row["runs"]
    )
    before = out.read_text()
    told = script(*own, *SMALL, "--out", str(out))
    assert out.read_text() == before, "what is recorded is not measured again"
    assert "from those of a second run" in told


@pytest.mark.slow
@pytest.mark.usefixtures("declared")
def test_steps_of_a_language_model(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "card.json"
    model, rows = save_decoder(tmp_path / "llama"), write_chats(tmp_path / "chats.jsonl", 80)
    own = ("--own", str(model), str(rows), "causal_lm", "--precisions", "fp32", "--parts", "equality,step")
    script(*own, *SMALL, "--out", str(out))
    (measured,) = json.loads(out.read_text())["subjects"].values()
    losses: Any = [[side["runs"][0]["loss"] for side in row["sides"].values()] for row in measured["step"]]
    assert all(ours == pytest.approx(theirs, rel=0.2) for ours, theirs in losses)
