"""Pairs of methods: each works, or is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lib import trying
from lib.tiny_rows import tiny_rows

from autopeft.method import method_names
from autopeft.recipe.tasks import acts_by_task

FOLDER = "composition_matrix"
BERT = "bert classification"
Import = Callable[[str], Any]


@pytest.fixture(scope="module")
def matrix(load: Import) -> Any:
    return load("matrix")


def _check(matrix: Any, pairs: Any) -> list[Any]:
    outcomes = [matrix.outcome_of(pair) for pair in pairs]
    assert [o for o in outcomes if o.outcome not in ("works", "refused")] == []
    assert all(o.reason.strip() for o in outcomes if o.outcome == "refused")
    return outcomes


@pytest.mark.slow
def test_all_that_is_recorded_is_there_once(matrix: Any) -> None:
    n = len(method_names())
    tried = matrix.everything()
    assert len(tried) == len(set(tried))
    for name, tiny in matrix.MODELS.items():
        own = [pair for pair in tried if pair.model == name]
        assert {pair.first for pair in own if pair.second is None} == set(method_names())
        pairs = [pair for pair in own if pair.second is not None]
        classes = {matrix.class_of(pair) for pair in matrix.all_pairs([name])}
        if tiny.two_tasks:
            acting = sum(map(acts_by_task, method_names()))
            assert len(pairs) == acting * (acting + 1) // 2 + acting * (n - acting)
            continue
        if tiny.every_pair:
            assert len(pairs) == n * (n + 1) // 2
        else:
            assert len(pairs) == len(classes)
        assert {matrix.class_of(pair) for pair in pairs} == classes


def test_each_kind_trains_its_own_rows(matrix: Any) -> None:
    kinds = {tiny.of_one for tiny in matrix.MODELS.values()}
    assert kinds == {"classification", "causal_lm", "seq2seq", "multiple_choice"}
    for name, tiny in matrix.MODELS.items():
        data = tiny_rows(tiny.kind, tiny.model().config)
        assert data.task.kind == tiny.kind
        batch = data.train.collate([0, 1])
        assert batch["labels"].ndim == (1 if tiny.kind == "classification" else 2), name
        refused = data.task.task_kind.head.refused(matrix.spec_of_model(tiny.model())[0], name)
        assert refused is None


LANGUAGE_MODELS = ("llama causal_lm", "t5 seq2seq", "llama multiple_choice")
OTHERS = ("llama classification", *LANGUAGE_MODELS)
TWO_TASKS = "t5 seq2seq, two tasks"


@pytest.mark.parametrize("name", [BERT, *OTHERS])
@pytest.mark.slow
def test_one_pair_of_each_class_of_shared_site(matrix: Any, name: str) -> None:
    assert set(matrix.MODELS) == {BERT, *OTHERS, TWO_TASKS}
    pairs = matrix.one_of_each_class(matrix.all_pairs([name]))
    assert len({matrix.class_of(pair) for pair in pairs}) == len(pairs)
    outcomes = _check(matrix, pairs)
    taken = [pair for pair in pairs if matrix.class_of(pair)[-1] is not None]
    assert sum(o.outcome == "works" for o in outcomes) > len(taken) // 2


def test_what_acts_by_the_task_works_beside_others(matrix: Any) -> None:
    acting = [name for name in method_names() if acts_by_task(name)]
    assert acting == ["hyperformer", "intrinsic_prompt", "pha"]
    pairs = [matrix.Pair(TWO_TASKS, name, "lora") for name in acting]
    assert [o.outcome for o in _check(matrix, pairs)] == ["works"] * 3


# The support matrix has them too, and tries some of them by default.
@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_each_method_alone_on_language_models(matrix: Any, name: str) -> None:
    outcomes = _check(matrix, matrix.alone([name]))
    works = {o.first for o in outcomes if o.outcome == "works"}
    assert {"lora", "prompt_tuning", "prefix_tuning", "fish_mask", "tpt"} <= works
    assert ("ipa" in works) == (name == "llama causal_lm")
    assert ("xattn_tuning" in works) == (name == "t5 seq2seq")


@pytest.mark.slow
def test_a_sample_of_all_pairs(matrix: Any) -> None:
    pairs = matrix.sampled(matrix.everything(), 0.004)
    assert pairs == matrix.sampled(matrix.everything(), 0.004)
    _check(matrix, pairs)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_pair(matrix: Any) -> None:
    _check(matrix, matrix.everything())


def test_a_method_that_nothing_reaches_is_found(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA whose B gets no gradient, as a pair that hides a site from it would leave it."""
    from autopeft.nn import LowRankPair

    forward = LowRankPair.forward

    def deaf(self: Any, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x).detach()

    monkeypatch.setattr(LowRankPair, "forward", deaf)
    outcome = matrix.outcome_of(matrix.Pair(BERT, "ia3", "lora"))
    assert outcome.outcome == "broken"
    assert "lora.at.encoder-0-q.B" in outcome.reason


def test_a_crash_is_no_refusal(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("gone")

    monkeypatch.setattr(trying, "train", fall)
    outcome = matrix.outcome_of(matrix.Pair("t5 seq2seq", "ia3", "lora"))
    assert (outcome.outcome, outcome.reason) == ("broken", "ZeroDivisionError: gone")


def test_the_table_counts_and_numbers_the_reasons(load: Import, matrix: Any) -> None:
    outcomes = [
        matrix.Outcome(BERT, "ia3", None, "works"),
        matrix.Outcome(BERT, "ia3", "ia3", "works"),
        matrix.Outcome(BERT, "ia3", "lora", "refused", "too\nmuch"),
        matrix.Outcome(BERT, "lora", "lora", "refused", "too\nmuch"),
        matrix.Outcome("t5 seq2seq", "ia3", None, "works"),
        matrix.Outcome("t5 seq2seq", "ia3", "lora", "works"),
        matrix.Outcome("t5 seq2seq", "lora", None, "broken", "gone"),
    ]
    text = load("run").table(outcomes)
    assert "3 pairs: 1 work (·), 2 are refused." in text
    assert "| ia3 | · | · | 1 |" in text
    assert "2 methods alone: 1 work (·), 0 are refused, **1 are broken**." in text
    assert "| ia3 | · | lora · |" in text
    assert "1. too much\n2. gone\n" in text


def test_a_run_goes_on_where_it_stopped(
    load: Import, matrix: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, tried = load("run"), list[Any]()
    pairs, left = [matrix.Pair(BERT, name) for name in ("ia3", "lora", "ssf")], [2]

    def outcome(pair: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        tried.append(pair)
        return matrix.Outcome(pair.model, pair.first, pair.second, "works")

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "outcome_of", outcome)
    with pytest.raises(KeyboardInterrupt):
        run.run(pairs)
    tried.clear()
    left[0] = 9
    assert [o.first for o in run.run(pairs)] == ["ia3", "lora", "ssf"]
    assert tried == pairs[2:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outcomes.json", "table.md"]
    more = [matrix.Pair(BERT, "bitfit"), *pairs]
    tried.clear()
    assert [o.first for o in run.run(more)] == ["bitfit", "ia3", "lora", "ssf"]
    assert tried == more[:1], "what is recorded is not tried again"
    assert run.recorded() == run.run(more, fresh=True)
    assert tried[1:] == more


def test_the_table_is_that_of_the_recorded_outcomes(load: Import) -> None:
    run = load("run")
    assert (run.RESULTS / "table.md").read_text(encoding="utf-8") == run.table(run.recorded())


def test_every_recorded_pair_works_or_is_refused(load: Import) -> None:
    outcomes = load("run").recorded()
    assert [o for o in outcomes if o.outcome not in ("works", "refused")] == []
