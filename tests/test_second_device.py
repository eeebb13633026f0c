"""A device as a stranger declares one, and where the tests on the second device are started from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.saved_model import save_backbone, write_reviews
from support.second_device_run import FILES, FOLDER, needs_a_device


def test_each_file_is_started_somewhere() -> None:
    started = sorted(file for files in FILES.values() for file in files)
    assert started == sorted(path.name for path in FOLDER.glob("test_*.py"))


HYBRIDS: list[dict[str, Any]] = [
    {
        "name": "of-activations",
        "layers": [{"attach": [{"gate": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2}}]}, "ia3"]}],
    },
    {"name": "of-weights", "layers": [{"attach": [{"dora": {"rank": 2}}, {"vera": {"rank": 4}}, "bitfit"]}]},
    {"name": "of-rows", "model": [{"fish_mask": {"keep": "1%", "samples": 8}}]},
]


@needs_a_device
def test_a_device_that_offers_nothing_but_a_name_trains(tmp_path: Path) -> None:
    save_backbone(tmp_path / "model")
    write_reviews(tmp_path / "rows.csv")
    script = Path(__file__).parent / "support" / "bare_device.py"
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
