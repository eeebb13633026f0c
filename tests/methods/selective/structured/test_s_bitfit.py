"""S-BitFit: whole bias tensors by the sum of their entries' scores, under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.entries import Seen, differing, recipe_of, trained
from support.toy import configured, toy_spec
from support.training import encoded_task, tiny_bert

from autopeft.counting import count
from autopeft.errors import MethodError
from autopeft.hybrid import load

K = 100


def searched(scores: dict[str, float], **config: Any) -> Any:
    """A module whose search has found these sums; all entries of a tensor have the same score."""
    module = configured("s_bitfit", **config).build((), toy_spec(layers=1))
    module.begin_search()
    module._scores = {
        t.name: torch.full(t.shape, scores.get(t.name, 0.0) / t.size) for t in module.entries.tensors
    }
    return module


def chosen(module: Any) -> set[str]:
    """Names of the tensors that are chosen whole; none is chosen in part."""
    sizes = {t.name: t.size for t in module.entries.tensors}
    inside = {n: hi - lo for n, (lo, hi) in module.entries.spans().items() if hi > lo}
    assert all(sizes[n] == held for n, held in inside.items())
    return set(inside)


SIZES = {t.name: t.size for t in toy_spec(layers=1).tensors if "bias" in t.role}


def test_the_best_tensors_that_fit_are_taken() -> None:
    names = sorted(SIZES, key=lambda n: SIZES[n])
    small, large = names[0], names[-1]
    assert SIZES[small] < SIZES[large]
    scores = {large: 9.0, small: 5.0}
    module = searched(scores, keep=SIZES[large])
    module.end_search()
    assert chosen(module) == {large}
    module = searched(scores, keep=SIZES[large] - 1)
    module.end_search()
    assert small in chosen(module), "one that does not fit is passed over"
    assert large not in chosen(module)
    assert len(module.entries.values) == sum(SIZES[n] for n in chosen(module)) < SIZES[large]


def test_sums_and_means_rank_differently() -> None:
    names = sorted(SIZES, key=lambda n: SIZES[n])
    small, large = names[0], names[-1]
    scores = {large: 9.0, small: 9.0 * SIZES[small] / SIZES[large] + 0.5}
    found = {}
    for rank_by in ("sum", "mean"):
        module = searched(scores, keep=SIZES[large], rank_by=rank_by)
        module.end_search()
        found[rank_by] = chosen(module)
    assert found["sum"] == {large}
    assert small in found["mean"]
    assert large not in found["mean"]


def test_what_harms_comes_last() -> None:
    names = sorted(SIZES)
    module = searched({n: -1.0 if n == names[0] else 1.0 for n in names}, keep=sum(SIZES.values()) - 1)
    module.end_search()
    assert chosen(module) == set(names[1:])
    module = searched({n: -2.0 if n == names[0] else 1.0 for n in names}, keep=SIZES[names[0]], score="abs")
    module.end_search()
    assert names[0] in chosen(module)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return trained(recipe_of("s_bitfit", keep=K, training={"weight_decay": 0.1}))


def test_the_scores_are_sums_of_those_of_single_entries() -> None:
    """Of the same batches in the same order."""
    found: dict[str, dict[str, float]] = {}
    for method in ("u_bitfit", "s_bitfit"):

        def look(module: Any, method: str = method) -> None:
            found[method] = {t.name: float(module.scores(t.name).sum()) for t in module.entries.tensors}

        trained(recipe_of(method, keep=K), look=look)
    assert found["u_bitfit"] == found["s_bitfit"]
    assert len(set(found["u_bitfit"].values())) > 5


def test_tensors_differ_whole_or_not_at_all(seen: Seen, tmp_path: Path) -> None:
    inside = chosen(seen.module)
    held = sum(t.size for t in seen.module.entries.tensors if t.name in inside)
    assert len(seen.module.entries.values) == held <= K
    assert K - held < 24, "another tensor would have had room"
    counts = seen.hybrid.counts()
    assert counts.deployed == held
    assert count(seen.hybrid.graph, seen.hybrid.spec).deployed == K
    seen.hybrid.save(tmp_path / "kept")
    again = load(tiny_bert(), tmp_path / "kept")
    batch = encoded_task().train.collate([0, 1])
    both = [h.model(batch["input_ids"], batch["attention_mask"]).logits for h in (seen.hybrid, again)]
    assert torch.equal(*both)
    wrong = differing(seen)
    assert set(wrong.tolist()) <= set(seen.module.entries.index.tolist())
    assert len(wrong) > 0.9 * held


def test_a_budget_that_nothing_fits_into_is_refused() -> None:
    with pytest.raises(MethodError, match=r"room for 1 entries, and the smallest bias of 'toy'.*u_bitfit"):
        configured("s_bitfit", keep=1).parameter_count((), toy_spec(hidden=6, ffn=7, kv=5))


def test_more_than_the_budget_is_not_loaded() -> None:
    module = configured("s_bitfit", keep=20).build((), toy_spec(layers=1))
    module.resize({"entries.values": (21,), "entries.index": (21,)})
    assert len(module.entries.values) == 20
    module.resize({"entries.values": (7,), "entries.index": (8,)})
    assert len(module.entries.values) == 20
    module.resize({"entries.values": (7,), "entries.index": (7,)})
    assert len(module.entries.values) == len(module.entries.index) == 7
