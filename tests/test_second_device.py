"""A device as a stranger declares one, and `tests/second_device` in a process that has its device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone, write_reviews

TESTS = Path(__file__).parent
needs_a_device = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} lets Python declare no device; 2.13 does",
)


@needs_a_device
@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_it_does_there_what_it_does_on_the_cpu(marked: str) -> None:
    path = os.pathsep.join([str(TESTS / "support" / "second_device"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked),
            str(TESTS / "second_device"),
        ],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


HYBRIDS: list[dict[str, Any]] = [
    {
        "name": "of-activations",
        "layers": [{"attach": [{"gate": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2}}]}, "ia3"]}],
    },
    {"name": "of-weights", "layers": [{"attach": [{"dora": {"rank": 2}}, {"vera": {"rank": 4}}, "bitfit"]}]},
    {"name": "of-rows", "model": [{"fish_mask": {"keep": "1%", "samples": 8}}]},
]


@needs_a_device
@pytest.mark.slow
def test_a_device_that_offers_nothing_but_a_name_trains(tmp_path: Path) -> None:
    save_backbone(tmp_path / "model")
    write_reviews(tmp_path / "rows.csv")
    script = TESTS / "support" / "bare_device.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(json.dumps, HYBRIDS)],
        cwd=tmp_path,
        env={**os.environ, "AUTOPEFT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for there, here in json.loads(done.stdout.splitlines()[-1]):
        assert (there[2], here[2]) == ("cpu", "xyz:0")
        assert here[:2] == there[:2]
