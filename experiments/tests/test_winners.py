"""The tables of the winners' experiment; nothing is searched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FOLDER = "winners"
Import = Callable[[str], Any]


def _found(mean: float, difference: float, rank: int, moved: float) -> dict[str, Any]:
    def against(name: str, by: float) -> dict[str, Any]:
        return {"baseline": name, "difference": by, "low": by - 0.01, "high": by + 0.01}

    return {
        "recipe": {"layers": [{"at": "all", "attach": [{"lora": {"rank": 2}}, "ia3"]}], "model": ["bitfit"]},
        "counts": {"deployed": 12345},
        "test": [mean - 0.01, mean, mean + 0.01],
        "comparisons": [
            against(f"LoRA rank {rank} on q, v of all layers", difference),
            against("head only", 0.2),
            against("best single method: dora", 0.0),
        ],
        "selection_bias": 0.02,
        "baselines": [{"name": f"LoRA rank {rank} on q, v of all layers", "test_mean": 0.6}],
        "transfer": [moved, moved],
    }


def test_baselines_of_a_kind_are_one_row_whatever_a_search_chose(load: Import) -> None:
    results = {
        f"{task}/{seed}": _found(0.7 + 0.02 * seed, 0.03 * (1 - seed), rank=2 + seed, moved=0.5)
        for seed in range(3)
        for task in ("movie-sentences", "trec")
    }
    text = load("tables").tables(results)
    assert "| trec | 2 | lora + ia3 + bitfit | 12,345 | 0.740 ± 0.010 | +0.020 |" in text
    assert "| movie-sentences | LoRA | +0.000 ± 0.075 | 1, 1, 1 |" in text
    assert text.count("| LoRA |") == 2
    assert "| movie-sentences | best single method | +0.000 ± 0.000 | 0, 0, 3 |" in text
    assert "| movie-sentences | trec | 0.500 ± 0.000 | -0.100 ± 0.000 | -0.220 ± 0.050 |" in text


def test_tables_of_what_has_only_begun(load: Import) -> None:
    found = _found(0.7, 0.1, rank=4, moved=0.5)
    del found["transfer"]
    text = load("tables").tables({"trec/0": found})
    assert "| trec | LoRA | +0.100 | 1, 0, 0 |" in text
