"""What a search costs outside its training: memory, and a whole run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = "startup"
Import = Callable[[str], Any]
Script = Callable[..., str]


SMAPS = """\
7f00-7f10 rw-p 00000000 00:00 0
Size:               2048 kB
Pss:                1000 kB
Pss_Anon:           1000 kB
7f10-7f20 r-xp 00000000 08:01 42                         /usr/lib/libtorch.so.2
Pss:               90000 kB
7f20-7f30 r--s 00000000 08:01 43                         /cache/a model.safetensors
Pss:                  24 kB
VmFlags: rd mr
"""


def test_memory_is_counted_without_libraries(load: Import) -> None:
    assert load("memory").pss(SMAPS) == 1024 << 10


@pytest.mark.slow
def test_startup_measures_every_part(script: Script, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "startup.json"
    script(
        *tiny, "--repeats", "1", "--attach-repeats", "2", "--trials", "2",
        "--idle-seconds", "2", "--select", "8", "--max-length", "24", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    marks = {mark: summary["cpu"]["median"] for mark, summary in found["first"]["ours"].items()}
    assert marks["imports"] < marks["backbone and data"] < marks["first step"]
    assert found["ray"]["through_ray"]["cpu"] > 0
    assert found["memory"]["ours"]["loaded_and_bare"] > found["memory"]["ours"]["bare_and_bare"]
    assert set(found["attach"]) == {"lora", "prompt", "hybrid"}
