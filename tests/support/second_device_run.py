"""Runs files of `tests/second_device` in a process in which `import torch` declares the device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

__all__ = ["FILES", "FOLDER", "default_and_slow", "needs_a_device", "run_there"]

FOLDER = Path(__file__).parents[1] / "second_device"
FILES = {
    "hybrid": ("test_contract.py", "test_hybrids.py"),
    "search": ("test_placement.py", "test_search.py"),
    "training": ("test_training.py",),
}
"""By the room whose tests start them, so that several processes divide them among themselves."""

needs_a_device = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} lets Python declare no device; 2.13 does",
)
default_and_slow = pytest.mark.parametrize(
    "marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
)


def run_there(files: Sequence[str], marked: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of files that are marked so."""
    place = str(FOLDER.parent / "support" / "second_device")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked),
            *(str(FOLDER / file) for file in files),
        ],
        cwd=FOLDER.parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([place, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
