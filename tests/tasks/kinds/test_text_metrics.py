"""Metrics of generated answers, and outputs that hold likelihoods and texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autopeft.errors import TaskError
from autopeft.tasks.kinds import generative_scorer, get_kind, get_metric, jackknife_variance
from autopeft.tasks.kinds.metric import pseudo_values
from autopeft.tasks.kinds.text_metrics import (
    CHRF,
    EXACT_MATCH,
    LAST_NUMBER,
    ROUGE_1,
    ROUGE_2,
    ROUGE_L,
)

KIND = get_kind("causal_lm")


def texts(*rows: str) -> NDArray[Any]:
    found = np.empty(len(rows), dtype=object)
    found[:] = rows
    return found


def outputs(*rows: str) -> NDArray[Any]:
    likelihoods = np.stack([[float(i + 1), 2.0, 1.0] for i in range(len(rows))])
    return KIND.scorer.with_texts(likelihoods, rows)


def test_an_exact_match_looks_at_no_white_space_but_between_words() -> None:
    found = texts(" a  b\n", "a b", "A b", "ab", "")
    assert EXACT_MATCH.score(found, texts("a b", "a\tb", "a b", "a b", " ")) == pytest.approx(3 / 5)


def test_the_last_number_is_compared_whatever_stands_around_it() -> None:
    """As LLM-Adapters scores arithmetic: no commas, the last number, within 0.001; none is wrong."""
    said = texts("3 + 4 = 7. So it is 1,234.", "-0.5 °C", "2.9995", "2.998", "none", "12", "-3")
    wanted = texts("1234", "it is -.5, or -0.5", "3", "3", "none", "no number", "3")
    assert [LAST_NUMBER.score(said[i : i + 1], wanted[i : i + 1]) for i in range(7)] == [1, 1, 1, 0, 0, 0, 0]
    assert LAST_NUMBER.score(said, wanted) == pytest.approx(3 / 7)
    assert LAST_NUMBER.score(texts("9" * 500), texts("9" * 500)) == 0.0, "beyond what a number can be"


def test_rouge_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    """Of `police kill the gunman` (Lin 2004, section 3): 3 of 4 words in order, then 2 of 4."""
    wanted = texts("police killed the gunman")
    assert ROUGE_L.score(texts("police kill the gunman"), wanted) == pytest.approx(0.75)
    assert ROUGE_L.score(texts("the gunman kill police"), wanted) == pytest.approx(0.5)
    assert ROUGE_L.score(texts("Police"), wanted) == pytest.approx(2 * 1 * 0.25 / 1.25)
    assert ROUGE_L.score(texts("", "?!"), texts("police", "police")) == 0.0


def test_rouge_is_that_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    rng = np.random.default_rng(0)
    reference = RougeScorer(["rougeL"], use_stemmer=False)
    for _ in range(200):
        said, wanted = (
            "".join(rng.choice([*"abcA1é", " ", " ", ", ", "\n"], int(rng.integers(0, 120))))
            for _ in range(2)
        )
        expected = reference.score(wanted, said)["rougeL"].fmeasure
        assert ROUGE_L.score(texts(said), texts(wanted)) == pytest.approx(expected, abs=1e-12)


def test_rouge_1_and_2_count_words_and_pairs_of_them() -> None:
    """Of the same texts: police, the, gunman in any order; and of three pairs `the gunman`."""
    wanted = texts("police killed the gunman")
    assert ROUGE_1.score(texts("police kill the gunman"), wanted) == pytest.approx(3 / 4)
    assert ROUGE_1.score(texts("the gunman kill police"), wanted) == pytest.approx(3 / 4)
    assert ROUGE_2.score(texts("police kill the gunman"), wanted) == pytest.approx(1 / 3)
    # Precision 1 of 4 pairs, recall 1 of 3.
    assert ROUGE_2.score(texts("The gunman, police kill!!"), wanted) == pytest.approx(1 / 3)
    assert ROUGE_1.score(texts("the the the the"), wanted) == pytest.approx(1 / 4), "once, as it stands once"
    for metric in (ROUGE_1, ROUGE_2):
        assert metric.score(texts("", "?!", "a"), texts("police", "police", "")) == 0.0


def test_chrf_counts_letters_of_all_rows_together() -> None:
    """`abc` for `abd`: 2 of 3 letters, 1 of 2 pairs, 0 of 1 triple; precision and recall are the same. With
    `ab` for `ab` 4 of 5, 2 of 3 and 0 of 1."""
    pytest.importorskip("sacrebleu")
    assert CHRF.score(texts("abc"), texts("abd")) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    together = CHRF.score(texts("abc", "ab"), texts("abd", "a b"))
    assert together == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    # Recall counts twice as much: 2 of 2 and 1 of 1 said, 2 of 4 and 1 of 3 wanted.
    precision, recall = 1.0, (2 / 4 + 1 / 3) / 2
    assert CHRF.score(texts("ab"), texts("abcd")) == pytest.approx(
        5 * precision * recall / (4 * precision + recall)
    )
    assert CHRF.score(texts(""), texts("ab")) == 0.0


def test_chrf_is_that_of_sacrebleu() -> None:
    reference = pytest.importorskip("sacrebleu.metrics").CHRF()
    rng = np.random.default_rng(0)
    said, wanted = (
        ["".join(rng.choice([*"abcé ", ".", "\n"], int(rng.integers(0, 60)))) for _ in range(50)]
        for _ in range(2)
    )
    expected = reference.corpus_score(said, [wanted]).score / 100
    assert CHRF.score(texts(*said), texts(*wanted)) == pytest.approx(expected, abs=1e-12)


def test_chrf_without_its_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.tasks.kinds.text_metrics.find_spec", lambda name: None)
    for kind in ("causal_lm", "seq2seq"):
        with pytest.raises(TaskError, match=r"pip install 'autopeft\[chrf\]'"):
            get_kind(kind).scorer.check_metric(CHRF, ())
        get_kind(kind).scorer.check_metric(ROUGE_2, ())


def test_half_of_a_surrogate_pair_in_an_answer_is_no_word() -> None:
    for metric in (ROUGE_1, ROUGE_2, ROUGE_L):
        assert metric.score(texts("\ud800 a b"), texts("a b")) == 1.0


@pytest.mark.parametrize(
    "metric", [EXACT_MATCH, LAST_NUMBER, ROUGE_1, ROUGE_2, ROUGE_L, CHRF], ids=lambda m: m.name
)
def test_what_rows_contribute_is_that_of_the_score(metric: Any) -> None:
    if metric is CHRF:
        pytest.importorskip("sacrebleu")
    rng = np.random.default_rng(1)
    said = texts(*[" ".join(rng.choice(["a1", "b2", "c3"], 3)) for _ in range(230)])
    wanted = texts(*[" ".join(rng.choice(["a1", "b2", "c3"], 3)) for _ in range(230)])
    found = KIND.scorer.pseudo_values(metric, outputs(*said), wanted)
    assert len(found) == 100
    assert found == pytest.approx(pseudo_values(metric.score, said, wanted))
    score = metric.score(said, wanted)
    assert found.mean() == pytest.approx(score, abs=1e-3)
    variance = jackknife_variance(metric.score, said, wanted)
    rows = type("Rows", (), {"rows": 230, "classes": (), "labels": wanted})()
    if metric is EXACT_MATCH:
        assert metric.sampling_variance(score, rows) == pytest.approx(variance, rel=0.4)
    assert metric.sampling_variance(score, rows) > 0.8 * variance


def test_one_pass_serves_metrics_of_both_sorts() -> None:
    found, wanted = outputs("two", "one"), texts("two", "two")
    assert KIND.scorer.score(EXACT_MATCH, found, wanted) == 0.5
    assert KIND.scorer.score(get_metric("likelihood"), found, wanted) == pytest.approx(np.exp(-3 / 4))
    assert KIND.scorer.score(get_metric("token_accuracy"), found, wanted) == 0.5
    assert KIND.scorer.row_loss(found, wanted) == pytest.approx(3 / 4)
    assert KIND.scorer.score(EXACT_MATCH, KIND.scorer.decisions(found), wanted) == 0.5
    (table,) = KIND.scorer.breakdown(found, wanted, ())
    assert table.rows == (("all rows", 0.5, 0.5, 3.0, 3.0, 0),)


def test_outputs_of_batches_are_joined_and_put_in_order() -> None:
    found = np.concatenate([outputs("a", "b"), outputs("c")])
    restored = np.empty_like(found)
    restored[[2, 0, 1]] = found
    assert restored["answer"].tolist() == ["b", "c", "a"]
    assert restored["likelihoods"][:, 0].tolist() == [2.0, 1.0, 1.0]


def test_predictions_without_texts_cannot_be_compared_with_texts() -> None:
    with pytest.raises(TaskError, match=r"exact_match compares generated answers.*Generation\(\)"):
        KIND.scorer.score(EXACT_MATCH, np.zeros((2, 3)), texts("a", "b"))
    with pytest.raises(TaskError, match="Models for classification write no texts"):
        generative_scorer(get_kind("classification").scorer)


def test_what_stands_for_a_metric_in_trials() -> None:
    assert KIND.scorer.trial_metric(ROUGE_L).name == "likelihood"
    assert KIND.scorer.trial_metric(get_metric("token_accuracy")).name == "token_accuracy"


def test_a_prediction_says_what_is_known() -> None:
    (told,) = (KIND.scorer.present(row, ()) for row in outputs("a\tb"))
    assert told["answer"] == "a\tb"
    assert told["loss"] == pytest.approx(0.5)
    assert KIND.scorer.line(told) == "a b"
    nothing = KIND.scorer.with_texts(np.zeros((1, 3)), ["a"])[0]
    assert KIND.scorer.present(nothing, ()) == {"answer": "a"}
    assert (
        KIND.scorer.line(KIND.scorer.present(np.array([1.0, 2.0, 1.0]), ()))
        == "loss 0.5000  perplexity 1.649"
    )


def test_the_reward_of_a_text_is_the_metric_of_it_alone() -> None:
    pytest.importorskip("sacrebleu")
    wanted = texts("abd", "ab")
    found = KIND.scorer.rewards(CHRF, ["abc", "ab"], wanted)
    assert found.tolist() == pytest.approx([(2 / 3 + 1 / 2) / 3, 1.0])
