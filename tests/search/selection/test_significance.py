from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autopeft.search.selection.significance import (
    Comparison,
    ScoredSplit,
    compare,
    compare_with_constant,
    matched_groups,
    rows_variance,
    selection_bias,
    uncorrected,
    within,
)
from autopeft.tasks import METRICS
from autopeft.tasks.kinds.metric import Metric, pseudo_values

TEST = ScoredSplit("accuracy", 1000, (500, 500))
ENDLESS = ScoredSplit("accuracy", 10**15)


def seeded(values: Any) -> dict[int, float]:
    return {1000 + i: float(v) for i, v in enumerate(values)}


def against(winner: Any, baseline: Any, split: ScoredSplit = TEST) -> Comparison:
    return compare(seeded(winner), seeded(baseline), split, name="LoRA rank 12")


def test_with_endless_rows_it_is_the_paired_t_interval() -> None:
    a, b = [0.81, 0.85, 0.83, 0.84], [0.80, 0.82, 0.83, 0.79]
    found = against(a, b, ENDLESS)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.paired
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_with_other_seeds_it_is_welchs_t_interval() -> None:
    a, b = [0.81, 0.85, 0.83], [0.80, 0.82]
    found = against(a, b, ENDLESS)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert not found.paired
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    shifted = compare({1: 0.8, 2: 0.9}, {2: 0.8, 3: 0.9}, ENDLESS, name="x")
    assert not shifted.paired


def test_seeds_are_paired_by_seed_and_not_by_order() -> None:
    winner, baseline = {1: 0.80, 2: 0.90}, {2: 0.89, 1: 0.79}
    found = compare(winner, baseline, ENDLESS, name="x")
    assert found.low == pytest.approx(0.01, abs=1e-6)
    assert found.within_noise is False


def test_equal_seeds_leave_the_noise_of_the_rows() -> None:
    found = against([0.9, 0.9, 0.9], [0.88, 0.88, 0.88])
    p, q = 901 / 1002, 881 / 1002
    half = stats.norm.ppf(0.975) * math.sqrt(p * (1 - p) / 1000 + q * (1 - q) / 1000)
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half))
    assert found.within_noise is True, "three lucky seeds prove nothing on 1,000 rows"


def test_a_clear_difference_is_no_noise() -> None:
    found = against([0.91, 0.90, 0.92], [0.70, 0.71, 0.69])
    assert found.within_noise is False
    worse = against([0.70, 0.71, 0.69], [0.91, 0.90, 0.92])
    assert (worse.low, worse.high) == pytest.approx((-(found.high or 0), -(found.low or 0)))


@pytest.mark.parametrize(
    ("winner", "baseline", "said"),
    [
        (
            [0.91, 0.90, 0.92],
            [0.70, 0.71, 0.69],
            ["21.0 points above LoRA rank 12", "+15.0 to +27.0"],
        ),
        ([0.70, 0.71, 0.69], [0.91, 0.90, 0.92], ["21.0 points below LoRA rank 12", "3 seeds each"]),
        ([0.850, 0.842, 0.858], [0.860, 0.853, 0.858], ["0.7 points below", "−4.2 to +2.8", "within noise"]),
        ([0.1, 0.2, 0.3], [0.3, 0.1, 0.2], ["scores as LoRA rank 12 does"]),
        ([0.8500, 0.8504], [0.85, 0.85], ["0.02 points above", "−3.1"]),
        ([0.95], [0.70], ["25.0 points above", "one seed each", "not known"]),
        ([0.85, 0.86, 0.85], [0.85], ["(3 and one seed)", "1,000 test rows"]),
        ([0.85], [0.85] * 11, ["(1 and 11 seeds)"]),
    ],
)
def test_a_difference_is_told_in_points_with_interval_and_seeds(
    winner: list[float], baseline: list[float], said: list[str]
) -> None:
    sentence = against(winner, baseline).sentence("mine")
    assert sentence.startswith("mine ")
    assert [words for words in said if words not in sentence] == []


def test_one_seed_has_no_interval() -> None:
    far = against([0.95], [0.70])
    assert (far.low, far.high, far.within_noise) == (None, None, None)
    near = against([0.85, 0.86, 0.85], [0.85])
    assert (near.low, near.within_noise) == (None, True)


# By rows
# ---------------------------------------------------------------------------------------------------------


def answers(rng: np.random.Generator, seeds: int, rows: int, shift: float, spread: float) -> list[np.ndarray]:
    """Which rows each of several models gets right: some rows are hard for all of them."""
    hard = np.random.default_rng(7).normal(size=rows)
    found = []
    for _ in range(seeds):
        chance = stats.norm.cdf(1.0 + shift + spread * rng.normal() - 2 * hard)
        found.append((rng.random(rows) < chance).astype(float))
    return found


def _accuracy(predictions: Any, labels: Any) -> float:
    return float((predictions == labels).mean())


def side(
    models: list[np.ndarray], texts: Any = None
) -> tuple[dict[int, float], dict[int, tuple[float, ...]]]:
    scores = {1000 + i: float(m.mean()) for i, m in enumerate(models)}
    truth = np.ones(len(models[0]))
    parts = {
        1000 + i: tuple(pseudo_values(lambda p, y: float((p == y).mean()), m, truth, texts))
        for i, m in enumerate(models)
    }
    return scores, parts


def by_rows(a: list[np.ndarray], b: list[np.ndarray], margin: float = 0.01) -> Comparison:
    (mine, my_parts), (other, other_parts) = side(a), side(b)
    split = ScoredSplit("accuracy", len(a[0]))
    return compare(mine, other, split, name="LoRA", parts=(my_parts, other_parts), margin=margin)


def test_by_rows_the_overlap_of_errors_counts() -> None:
    rng = np.random.default_rng(0)
    a, b = answers(rng, 3, 800, 0.0, 0.02), answers(rng, 3, 800, 0.0, 0.02)
    found = by_rows(a, b)
    apart = compare(side(a)[0], side(b)[0], ScoredSplit("accuracy", 800), name="LoRA")
    assert found.by_rows
    assert not found.paired
    assert not apart.by_rows
    assert None not in (found.low, found.high, apart.low, apart.high)
    assert found.high - found.low < 0.75 * (apart.high - apart.low)  # type: ignore[operator]


def test_equal_answers_leave_what_further_rows_may_show_and_one_row_apart_a_little_more() -> None:
    same = [np.repeat([1.0, 0.0], [90, 10])] * 3
    found, z = by_rows(same, same), 1.959964
    assert found.difference == 0.0
    # z² rows more that differ, of 100: exact for none of n is an upper limit of 1 - 0.025^(1/n) = 0.0362.
    assert found.high == -(found.low or 0.0) == pytest.approx(z**2 / 100, rel=0.02)
    assert not found.as_good
    assert by_rows(same, same, margin=0.04).as_good
    other = [m.copy() for m in same]
    for m in other:
        m[0] = 0.0
    found = by_rows(same, other)
    # One of 100 rows for all seeds: a mean of 0.01 and its standard error 0.01; and z² rows like it.
    assert found.difference == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01 + z * 0.01 * math.sqrt(1 + z**2), rel=1e-3)


def test_a_row_apart_in_one_seed_says_no_more_than_none() -> None:
    same = [np.repeat([1.0, 0.0], [270, 30]) for _ in range(3)]
    worse = [m.copy() for m in same]
    worse[0][0] = 0.0
    alike, once = by_rows(same, same), by_rows(worse, same)
    assert alike.low is not None
    assert once.low is not None
    assert once.low < alike.low
    assert not once.as_good
    both = [m.copy() for m in same]
    for m in both:
        m[:20] = 0.0
    split = ScoredSplit("accuracy", 300)
    many = rows_variance(*(np.array(list(side(m)[1].values())) for m in (both, same)), split)
    expected = (20 + 1.96**2) / 300**2 - (20 / 300) ** 2 / 100
    assert many == pytest.approx(expected, rel=0.05), "where more differ, what they are worth"


def test_seeds_that_cancel_say_no_more_than_seeds_that_answer_alike() -> None:
    """Both sides collapsed to either class by turns: no mean differs, or one by one row of one seed."""
    right, alike = np.repeat([1.0, 0.0], 6), by_rows(*([np.ones(12)] * 4,) * 2)
    turns = [right, 1 - right] * 2
    for mine in (turns, [right * (np.arange(12) > 0), *turns[1:]]):
        found = by_rows(mine, turns)
        assert (found.high or 0) - (found.low or 0) > (alike.high or 0) - (alike.low or 0) > 0.5
        assert not found.as_good


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_groups_that_no_differing_row_is_in_have_no_part_in_what_a_row_is_worth(metric: str) -> None:
    """With 872 rows some groups have nine and some eight, and an F1 is no mean of rows: what one row changes
    there shows in every group a little."""
    random, rows = np.random.default_rng(0), 872
    truth = random.integers(0, 2, rows)
    answer = np.where(random.random(rows) < 0.8, truth, 1 - truth)
    other = answer.copy()
    right = np.flatnonzero(answer == truth)[:2]
    other[right] = 1 - truth[right]
    score = {"accuracy": _accuracy, "macro_f1": f1}[metric]
    mine, theirs = (pseudo_values(score, x, truth)[None] for x in (answer, other))
    assert np.count_nonzero(np.abs(mine - theirs) > 1e-9) == 100
    found = rows_variance(mine, theirs, ScoredSplit("accuracy", rows))
    assert found == pytest.approx((2 + 1.96**2) / rows**2, rel=0.15)


def f1(predictions: Any, labels: Any) -> float:
    return float(METRICS["macro_f1"].score(predictions, labels))


@pytest.mark.parametrize(
    "rows",
    [50, 200, 400, 1000, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 300, 350, 450, 872))],
)
def test_sides_that_err_alike_are_seldom_called_as_good_where_one_is_worse_by_the_margin(rows: int) -> None:
    """No chance but that of the rows: the worse side errs where the other does, and on a row in a hundred
    more. Said wrongly in at most 2.5 of 100 searches; give or take 1.6 in 400 draws."""
    random, said, split = np.random.default_rng(0), 0, ScoredSplit("accuracy", rows)
    for _ in range(400):
        ease = random.random(rows)
        (mine, my_parts), (other, other_parts) = (side([(ease < p) * 1.0]) for p in (0.80, 0.81))
        both = tuple({seed: next(iter(own.values())) for seed in range(3)} for own in (my_parts, other_parts))
        scores = [dict.fromkeys(range(3), next(iter(own.values()))) for own in (mine, other)]
        said += bool(compare(*scores, split, name="LoRA", parts=both).as_good)
    assert said / 400 <= 0.025 + 0.016


# Copies
# ---------------------------------------------------------------------------------------------------------

COPIES: dict[str, Any] = {
    "250 × 2": lambda rng: np.full(250, 2),
    "100 × 5": lambda rng: np.full(100, 5),
    "30 × 20": lambda rng: np.full(30, 20),
    "300 × 1 and some × 20": lambda rng: np.where(rng.random(310) < 10 / 310, 20, 1),
    "geometric": lambda rng: rng.geometric(0.2, 100),
}


def copied(
    a: list[np.ndarray], b: list[np.ndarray], sizes: np.ndarray, *, known: bool = True, margin: float = 0.01
) -> Comparison:
    """Answers to texts, each of so many copies; `known` to be copies, or taken as rows of their own."""
    texts = np.repeat(np.arange(len(sizes)), sizes)
    sides = [side([answers[texts] for answers in own], texts if known else None) for own in (a, b)]
    split = ScoredSplit("accuracy", len(texts), sizes=tuple(sizes.tolist()) if known else ())
    parts = sides[0][1], sides[1][1]
    return compare(sides[0][0], sides[1][0], split, name="LoRA", parts=parts, margin=margin)


@pytest.mark.slow
@pytest.mark.parametrize("name", COPIES)
def test_copies_make_no_difference_of_noise(name: str) -> None:
    """Two recipes of equal accuracy, each of which some texts suit better, whatever the seed."""
    rng, claims, before, times = np.random.default_rng(0), 0, 0, 120
    for _ in range(times):
        sizes = COPIES[name](rng)
        hard, both = 1.5 * rng.normal(size=len(sizes)), []
        for _side in range(2):
            ease = 1.9 - hard - 1.5 * rng.normal(size=len(sizes))
            both.append([(ease > 0.35 * rng.normal(size=len(sizes))) * 1.0 for _ in range(4)])
        claims += copied(*both, sizes).within_noise is False
        before += copied(*both, sizes, known=False).within_noise is False
    # Said of 5 in 100 at most; three standard errors of 120 draws above.
    assert claims / times <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)
    assert before > claims, "what counted each copy as a row of its own said it more often"


@pytest.mark.slow
@pytest.mark.parametrize("name", COPIES)
def test_sides_that_err_alike_on_copies_are_seldom_called_as_good(name: str) -> None:
    """The worse side errs where the other does, and on one text in a hundred more."""
    rng, said, times = np.random.default_rng(0), 0, 200
    for _ in range(times):
        sizes = COPIES[name](rng)
        ease = rng.random(len(sizes))
        said += bool(copied([(ease < 0.80) * 1.0] * 2, [(ease < 0.81) * 1.0] * 2, sizes).as_good)
    assert said / times <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / times)


def test_texts_of_many_copies_make_an_interval_no_wider_than_they_move_the_score() -> None:
    """A text more on which sides differ is one of all texts, and not one of those with most copies."""
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        sizes = COPIES["300 × 1 and some × 20"](rng)
        both = [[(rng.random(len(sizes)) < 0.8) * 1.0] * 2 for _ in range(2)]
        found.append(copied(*both, sizes))
    needed = 1.96 * float(np.std([one.difference for one in found if one.difference is not None]))
    half = [(one.high - one.low) / 2 for one in found if one.low is not None and one.high is not None]
    assert 0.9 * needed < np.mean(half) < 1.4 * needed


@given(st.integers(0, 100), st.integers(20, 250), st.integers(1, 3), st.floats(0.5, 1.0))
def test_where_all_texts_differ_copies_change_no_digit(
    seed: int, rows: int, seeds: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    a, b = ([(rng.random(rows) < share) * 1.0 for _ in range(seeds)] for _ in range(2))
    found, plain = copied(a, b, np.ones(rows, dtype=np.int64)), by_rows(a, b)
    assert (found.low, found.high, found.within_noise) == (plain.low, plain.high, plain.within_noise)


@pytest.mark.parametrize("rows", [30, 400])
@pytest.mark.parametrize("copies", [2, 20])
def test_as_many_copies_of_each_text_leave_the_interval_of_the_texts(rows: int, copies: int) -> None:
    rng = np.random.default_rng(2)
    a, b = answers(rng, 3, rows, 0.0, 0.02), answers(rng, 3, rows, 0.0, 0.02)
    found, plain = copied(a, b, np.full(rows, copies)), by_rows(a, b)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
    assert (found.rows, found.texts) == (rows * copies, rows)


def test_a_text_apart_says_no_more_than_none_whatever_its_copies() -> None:
    sizes = np.array([1] * 60 + [20] * 3)
    same = [(np.arange(63) % 5 > 0) * 1.0] * 2
    alike = copied(same, same, sizes)
    for text in (1, 61):
        worse = [answers.copy() for answers in same]
        for answers_of_seed in worse:
            answers_of_seed[text] = 0.0
        found = copied(worse, same, sizes)
        assert found.low is not None
        assert alike.low is not None
        assert found.high is not None
        assert found.high - found.low > -2 * alike.low * 0.95
        assert found.low < alike.low


def test_how_many_rows_differ_is_said() -> None:
    rng = np.random.default_rng(0)
    a, b = answers(rng, 3, 30, 0.0, 0.02), answers(rng, 3, 30, 0.0, 0.02)
    found = copied(a, b, np.full(30, 20))
    assert "30 different rows among 600" in found.sentence()
    assert "different" not in by_rows(a, b).sentence()
    once = copied([np.ones(30)], [np.ones(30)], np.full(30, 20))
    assert "30 different test rows" in once.sentence()
    few = compare(
        {1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6}, ScoredSplit("accuracy", 600, sizes=(200, 200, 200)), name="x"
    )
    plain = compare({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6}, ScoredSplit("accuracy", 3), name="x")
    assert (few.low, few.high) == (plain.low, plain.high), "where contributions are not known"


def test_contributions_of_groups_that_part_copies_are_not_used() -> None:
    """As runs of before have stored them: a hundred groups of six hundred rows, of thirty texts."""
    rng, sizes = np.random.default_rng(0), np.full(30, 20)
    texts = np.repeat(np.arange(30), sizes)
    scores, parts = side([own[texts] for own in answers(rng, 3, 30, 0.0, 0.02)])
    split = ScoredSplit("accuracy", 600, sizes=tuple(sizes.tolist()))
    assert len(parts[1000]) == 100
    assert matched_groups((parts, parts), scores, scores, split) is None
    assert not compare(scores, scores, split, name="x", parts=(parts, parts)).by_rows
    assert matched_groups((parts, parts), scores, scores, replace(split, sizes=())) is not None


def test_where_most_rows_differ_further_ones_add_nothing() -> None:
    """Continuous contributions: the variance of the differences, and of thousand groups four more that
    differ as much as those do that differ much (of a normal three times the variance)."""
    random = np.random.default_rng(0)
    mine, other = random.normal(0.5, 0.1, (1, 1000)), np.full((1, 1000), 0.5)
    plain = float(np.var(mine - other, ddof=1)) / 1000
    assert rows_variance(mine, other, ScoredSplit("likelihood", 1000)) == pytest.approx(
        1.0115 * plain, rel=2e-3
    )


def test_of_few_groups_the_variance_is_that_of_further_ones() -> None:
    """On all ten the sides differ: their variance by nine, and z² rows that differ as much."""
    apart = np.array([[0.5, -0.3, 0.2, 0.4, -0.1, 0.6, -0.2, 0.3, 0.1, 0.7]])
    squares = apart**2
    more = 1.959964**2 * (squares**2).sum() / squares.sum() / 100
    expected = np.var(apart, ddof=1) / 10 + more
    found = rows_variance(apart, np.zeros((1, 10)), ScoredSplit("accuracy", 10))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> ScoredSplit:
    """Rows with a user's metric, of which neither range nor variance is known."""
    metric = Metric("own", -math.inf, math.inf, "", lambda p, y: 0.0)
    monkeypatch.setattr("autopeft.tasks.scored.get_metric", lambda name: metric)
    return ScoredSplit("own", 100)


def test_of_a_metric_without_a_range_nothing_is_said_that_is_not_known(endless: ScoredSplit) -> None:
    assert endless.least_variance == math.inf
    alike = {seed: [1.0] * 100 for seed in (1, 2)}
    same = compare({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}, endless, name="LoRA", parts=(alike, alike))
    assert (same.low, same.high, same.as_good) == (None, None, None), "a hundred rows alike show little"
    found = compare({1: 5.0, 2: 6.0}, {1: 4.0, 2: 4.0}, endless, name="LoRA")
    assert (found.low, found.high, found.within_noise, found.as_good) == (None, None, None, None)
    assert "150.0 points above LoRA" in found.sentence()
    assert "not known" in found.sentence()
    bias = selection_bias(0.8, 0.7, endless, endless)
    assert bias is not None
    assert "+10.0 points" in bias.sentence()


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        (0.01, "within 1 point"),
        (0.0025, "within 0.25 points"),
        (0.0004, "within 0.04 points"),
        (0.02, "within 2 points"),
        (0, "within 0 points"),
    ],
)
def test_a_margin_is_said_as_it_was_given(margin: float, words: str) -> None:
    assert within(margin) == words


def test_parts_that_are_missing_or_do_not_match_are_not_used() -> None:
    a = [np.repeat([1.0, 0.0], [90, 10])] * 2
    (scores, parts), split = side(a), ScoredSplit("accuracy", 100)
    for mine in (
        {},
        {1000: parts[1000]},
        {k: v[:50] for k, v in parts.items()},
        {k: v[:5] for k, v in parts.items()},
    ):
        found = compare(scores, scores, split, name="x", parts=(mine, parts))
        assert not found.by_rows
        assert found.paired


@pytest.mark.parametrize(("groups", "enough"), [(9, False), (10, True)])
def test_nine_groups_are_too_few_to_compare_by_rows(groups: int, enough: bool) -> None:
    scores, parts = side([np.repeat([1.0, 0.0], [groups - 4, 4])] * 2)
    own = {seed: values[:groups] for seed, values in parts.items()}
    found = compare(scores, scores, ScoredSplit("accuracy", groups), name="x", parts=(own, own))
    assert found.by_rows == enough


def test_an_answer_that_no_seed_changes_leaves_the_noise_of_the_winner_and_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    a, never = answers(rng, 3, 800, 0.0, 0.02), np.zeros((1, 800))
    mine, parts = side(a)
    _, constant = side(never)
    own = next(iter(constant.values()))
    split = ScoredSplit("accuracy", 800)
    found = compare_with_constant(mine, split, name="always 'no'", score=0.0, parts=(parts, own))
    assert found.by_rows
    assert found.seeds == (3, 0)
    seeds = stats.t.ppf(0.975, 2) * np.std(list(mine.values()), ddof=1) / math.sqrt(3)
    assert found.low is not None
    assert found.high is not None
    rows = stats.norm.ppf(0.975) * math.sqrt(
        rows_variance(np.array(list(parts.values())), np.zeros((3, 100)), split)
    )
    assert found.high - found.low == pytest.approx(2 * math.hypot(seeds, rows))
    assert "points above always 'no' (95 % interval" in found.sentence()
    assert ", 3 seeds): more than noise explains" in found.sentence()
    shy = compare_with_constant(mine, split, name="always 'no'", score=0.0, parts=(parts, own), margin=0.0025)
    assert shy.margin == 0.0025
    once = compare_with_constant({1: 0.5}, split, name="always 'no'", score=0.4, parts=({}, ()))
    assert "(one seed)" in once.sentence()


def test_one_seed_by_rows() -> None:
    same = [np.repeat([1.0, 0.0], [90, 10])]
    other = [same[0].copy()]
    other[0][:30] = 0.0
    found = by_rows(same, other)
    assert (found.low, found.high, found.within_noise) == (None, None, None)
    other[0][:30], other[0][0] = 1.0, 0.0
    assert by_rows(same, other).within_noise


def test_as_good_is_said_with_the_margin() -> None:
    rng = np.random.default_rng(3)
    a, b = answers(rng, 5, 4000, 0.0, 0.0), answers(rng, 5, 4000, 0.0, 0.0)
    near, far = by_rows(a, b, margin=0.03), by_rows(a, b, margin=0.0001)
    assert near.within_noise
    assert near.as_good
    assert "as good, within 3 points" in near.sentence()
    assert not far.as_good
    assert "as good" not in far.sentence()
    clear = by_rows(answers(rng, 5, 4000, 0.6, 0.0), b)
    assert clear.as_good
    assert "as good" not in clear.sentence()


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "seeds"), [(0.0, 3), (0.05, 3), (0.2, 3), (0.05, 5)])
def test_intervals_by_rows_hold_the_truth_as_often_as_they_say(spread: float, seeds: int) -> None:
    """Other rows and other seeds each time; the true difference is 0."""
    rng, times, held = np.random.default_rng(1), 400, 0
    for _ in range(times):
        hard, models = rng.normal(size=300), []
        for _ in range(2 * seeds):
            chance = stats.norm.cdf(1.0 + spread * rng.normal() - 2 * hard)
            models.append((rng.random(300) < chance).astype(float))
        found = by_rows(models[:seeds], models[seeds:])
        assert found.low is not None
        held += found.low <= 0 <= (found.high or 0.0)
    # Binomial: 95 of 100, give or take 1.1 in 400 draws; wider than needed where both parts matter.
    assert 0.925 <= held / times <= 0.995


def test_failed_runs_are_left_out() -> None:
    winner = {1: 0.9, 2: None, 3: math.nan, 4: 0.91, 5: math.inf}
    found = compare(winner, {1: 0.8, 2: 0.81, 3: 0.82}, ENDLESS, name="x")
    assert found.seeds == (2, 3)
    assert not found.paired
    assert found.difference == pytest.approx(0.905 - 0.81)
    assert "2 and 3 seeds" in found.sentence()


@pytest.mark.parametrize(
    ("winner", "baseline", "missing"), [({}, {1: 0.5}, "The winner"), ({1: 0.5}, {1: math.nan}, "x")]
)
def test_a_side_without_a_score(winner: dict[int, float], baseline: dict[int, float], missing: str) -> None:
    found = compare(winner, baseline, TEST, name="x")
    assert found.difference is None
    assert found.within_noise is None
    assert f"{missing} has no score" in found.sentence()


@given(
    st.lists(st.floats(0, 1) | st.just(math.nan), max_size=6),
    st.lists(st.floats(0, 1) | st.just(math.nan), max_size=6),
    st.integers(1, 10**6),
    st.sampled_from(sorted(METRICS)),
)
def test_any_scores_give_a_sentence(a: list[float], b: list[float], rows: int, metric: str) -> None:
    split = ScoredSplit(metric, rows, (rows // 3, rows - rows // 3))
    found = against(a, b, split)
    assert found.sentence().endswith(".")
    assert "nan" not in found.sentence()
    if found.low is not None and found.high is not None and found.difference is not None:
        assert found.low < found.difference < found.high
        assert found.within_noise is (found.low <= 0 <= found.high)
        back = against(b, a, split)
        assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def _claims(rng: Any, *, seeds: int, rows: int, sd: float, gap: float = 0.0, shared: bool = True) -> float:
    """How often a difference is claimed. Rows are drawn once for all seeds of a side, or for each seed."""
    size = 1500
    split = ScoredSplit("accuracy", rows)
    draws = (size, 2, 1 if shared else seeds)
    skill = np.clip(0.85 + np.array([[gap], [0.0]]) + np.zeros(draws), 0, 1)
    scores = rng.binomial(rows, skill) / rows + rng.normal(0, sd, (size, 2, seeds))
    made = [against(a, b, split) for a, b in np.clip(scores, 0, 1)]
    return sum(c.within_noise is False for c in made) / size


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("sd", [0.0, 0.008, 0.04])
@pytest.mark.parametrize("shared", [True, False])
def test_equal_models_are_rarely_told_apart(seeds: int, sd: float, shared: bool) -> None:
    rate = _claims(np.random.default_rng(0), seeds=seeds, rows=500, sd=sd, shared=shared)
    # Three standard errors of 1,500 draws above 5 %.
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


def test_rows_matter_also_with_many_seeds() -> None:
    """A paired t over the seeds alone would claim a difference most of the time here."""
    rng = np.random.default_rng(1)
    scores = rng.binomial(500, 0.85, (400, 2, 1)) / 500 + rng.normal(0, 0.002, (400, 2, 3))
    naive = np.mean([stats.ttest_rel(a, b).pvalue < 0.05 for a, b in scores])
    honest = np.mean([against(a, b, ScoredSplit("accuracy", 500)).within_noise is False for a, b in scores])
    assert naive > 0.4
    assert honest < 0.08


def test_real_differences_are_found() -> None:
    rng = np.random.default_rng(2)
    assert _claims(rng, seeds=3, rows=1000, sd=0.005, gap=0.06) > 0.85
    assert _claims(rng, seeds=5, rows=5000, sd=0.005, gap=0.025) > 0.85
    assert _claims(rng, seeds=3, rows=1000, sd=0.005, gap=0.005) < 0.1


def test_every_metric_has_a_variance() -> None:
    for name, metric in METRICS.items():
        split = ScoredSplit(name, 300, (100, 200))
        for score in np.linspace(metric.low, metric.high, 21):
            assert 0 < split.variance(float(score)) < 0.05
        assert ScoredSplit(name, 30_000, (10_000, 20_000)).variance(0.5) < split.variance(0.5) / 50
        assert ScoredSplit(name, 1).variance(0.5) > 0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews"])
@pytest.mark.parametrize(("prevalence", "wrong"), [(0.5, 0.2), (0.5, 0.05), (0.3, 0.2), (0.1, 0.05)])
def test_variances_are_near_those_of_drawn_rows_and_not_below(
    metric: str, prevalence: float, wrong: float
) -> None:
    rng, rows = np.random.default_rng(3), 600
    labels = rng.random((100, rows)) < prevalence
    positive = np.where(labels, 1 - wrong / (2 * prevalence), wrong / (2 * (1 - prevalence)))
    predictions = rng.random(labels.shape) < positive
    scores = [METRICS[metric].score(p, y) for p, y in zip(predictions, labels, strict=True)]
    ones = round(rows * prevalence)
    found = math.sqrt(ScoredSplit(metric, rows, (rows - ones, ones)).variance(float(np.mean(scores))))
    assert 0.85 * np.std(scores) <= found <= 1.5 * np.std(scores)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("r", [0.0, 0.5, 0.9])
def test_variances_of_correlations(metric: str, r: float) -> None:
    rng = np.random.default_rng(4)
    drawn = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=(100, 200))
    scores = [METRICS[metric].score(d[:, 0], d[:, 1]) for d in drawn]
    found = math.sqrt(ScoredSplit(metric, 200).variance(float(np.mean(scores))))
    assert 0.85 * np.std(scores) <= found <= 1.5 * np.std(scores)


def test_several_comparisons_are_said_to_be_uncorrected() -> None:
    one, other = against([0.9, 0.9], [0.8, 0.8]), against([0.9], [0.8])
    assert uncorrected([one, other]) is None
    assert str(uncorrected([one, one, other])).startswith("Each of the 2 intervals stands for itself")


def test_selection_bias() -> None:
    found = selection_bias(0.862, 0.850)
    assert found is not None
    assert (found.select, found.test, found.noise) == (0.862, 0.850, None)
    assert "+1.2 points" in found.sentence()
    select = ScoredSplit("accuracy", 400)
    noisy = selection_bias(0.862, 0.850, select, TEST)
    assert noisy is not None
    assert noisy.noise == pytest.approx(1.96 * math.sqrt(0.862 * 0.138 / 400 + 0.85 * 0.15 / 1000), rel=0.01)
    assert "±4.1" in noisy.sentence()
    large = selection_bias(0.95, 0.85, select, TEST)
    assert large is not None
    assert "more than chance" in large.sentence()


@pytest.mark.parametrize("means", [(None, 0.5), (0.5, None), (math.nan, 0.5), (0.5, math.inf)])
def test_no_bias_without_both_means(means: tuple[Any, Any]) -> None:
    assert selection_bias(*means) is None
