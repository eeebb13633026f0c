"""A hybrid across five families learns: it beats the head alone on real sentences, for every seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = "hybrid_vs_head"
Import = Callable[[str], Any]


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("task", "margin"), [("movie-sentences", 0.01), ("trec", 0.05)])
def test_the_hybrid_beats_the_head_alone_for_each_seed(
    load: Import, task: str, margin: float, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    rows = load("run").measure(tmp_path / "results.json", tasks=(task,))
    scores = {(r["what"], r["seed"]): r["test"] for r in rows}
    assert len(scores) == 6
    assert all(scores["hybrid", s] >= scores["head-only", s] + margin for s in range(3)), scores


def test_the_readme_has_the_table_of_what_is_recorded(load: Import) -> None:
    run = load("run")
    table = run.table(json.loads((run.HERE / "results" / "results.json").read_text()))
    assert table in (run.HERE / "README.md").read_text(encoding="utf-8")
