"""A hybrid across five families learns: it beats the head alone on real sentences, for every seed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

RUN = Path(__file__).parents[2] / "experiments" / "hybrid_vs_head" / "run.py"


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("hybrid_vs_head_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("task", "margin"), [("movie-sentences", 0.01), ("trec", 0.05)])
def test_the_hybrid_beats_the_head_alone_for_each_seed(task: str, margin: float, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    rows = _module().measure(tmp_path / "results.json", tasks=(task,))
    scores = {(r["what"], r["seed"]): r["test"] for r in rows}
    assert len(scores) == 6
    assert all(scores["hybrid", s] >= scores["head-only", s] + margin for s in range(3)), scores
