"""Streams that were closed before a command started, and a full disk behind stdout, as a shell has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.saved_model import save_backbone, write_reviews

RECIPE = "autopeft: 2\nname: pair\nlayers:\n  - attach:\n      - lora: {rank: 4}\n"


def in_shell(place: Path, redirected: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`autopeft` with its streams redirected."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "autopeft", *words],
        cwd=place, capture_output=True, text=True, timeout=300,
        env={**os.environ, "AUTOPEFT_CACHE": str(place / "cache")},
    )  # fmt: skip


@pytest.mark.slow
def test_a_training_ends_well_without_a_stdout(tmp_path: Path) -> None:
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "pair.yaml").write_text(RECIPE)
    data = ("--task", "reviews.csv", "--text", "body", "--label", "verdict", "--model", "bert")
    done = in_shell(
        tmp_path, ">&-", "train", "--recipe", "pair.yaml", *data, "--steps", "2", "--max-length", "24",
        "-o", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-"])
def test_other_commands_end_well_without_a_stream(tmp_path: Path, redirected: str) -> None:
    done = in_shell(tmp_path, redirected, "methods")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("lora" in done.stdout) is (redirected == "2>&-")
    wrong = in_shell(tmp_path, redirected, "show", "nothing.yaml")
    assert (wrong.returncode, wrong.stdout) == (2, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
@pytest.mark.parametrize("words", [("methods", "--json"), ("runs",)])
def test_a_full_disk_behind_stdout_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = in_shell(tmp_path, "> /dev/full", *words)
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line
    assert done.returncode == 1
