"""Budgets and counts: golden figures of published hybrids, exact and from configs alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, RobertaConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget, Counts, count
from autopeft.errors import BudgetError, CompositionError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe

BERT = spec_of(BertConfig())
MINILM = spec_of(
    BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
)


def test_unipelt_on_bert_base() -> None:
    graph = build_graph(Recipe.named("unipelt"), BERT)
    assert graph.entries["prefix_tuning"].count.deployed == 184_320
    assert graph.entries["serial_adapter"].count.deployed == 894_528
    assert graph.entries["lora"].count.deployed == 294_912
    assert [n.count.deployed for n in graph.nodes()] == [36_912]
    assert count(graph, BERT).deployed == 1_410_672
    assert graph.entries["prefix_tuning"].count.trained == 9_857_024


def test_mam_on_roberta_base() -> None:
    spec = spec_of(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))
    graph = build_graph(Recipe.named("mam"), spec)
    assert count(graph, spec).deployed == 589_824 + 12 * (16 + 768)
    assert graph.entries["prefix_tuning"].count.trained == 15_391_520


def test_lora_and_bitfit_on_bert_base() -> None:
    lora = Recipe.from_dict(
        {"autopeft": 2, "name": "x", "layers": [{"at": "all", "attach": [{"lora": {"rank": 8}}]}]}
    )
    assert count(lora, BERT).deployed == 294_912
    bitfit = Recipe.from_dict({"autopeft": 2, "name": "x", "model": [{"bitfit": {"pooler": False}}]})
    assert count(bitfit, BERT).deployed == 102_144


def test_shares() -> None:
    counts = count(Recipe.named("unipelt"), BERT, head=1538)
    assert counts.head == 1538
    assert counts.share == counts.deployed / 109_482_240
    assert counts.share_with_modules == counts.deployed / (109_482_240 + counts.deployed)
    assert set(counts.to_dict()) == {"deployed", "trained", "head", "backbone", "share", "share_with_modules"}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("0.5%", (0, 113_566)),
        ("300k", (0, 300_000)),
        ("1.2M", (0, 1_200_000)),
        ("5000", (0, 5_000)),
        ("0.1%..1%", (22_713, 227_132)),
        ("100k..300k", (100_000, 300_000)),
        ("0.1%..300k", (22_713, 300_000)),
    ],
)
def test_budget_limits_on_minilm(text: str, limits: tuple[int, int]) -> None:
    budget = Budget.parse(text)
    assert budget.limits(MINILM) == limits
    assert budget.admits(limits[1], MINILM)
    assert not budget.admits(limits[1] + 1, MINILM)
    assert str(Budget.parse(str(budget))) == str(budget)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("half", "not a quantity"),
        ("0%", "must be positive"),
        ("-3k", "not a quantity"),
        ("120%", "at most 100%"),
        ("0.5", "not a whole number of parameters; for a share write '0.5%'"),
        ("5868.5", "not a whole number of parameters; write '5868'"),
        ("1%..0.1%", "runs backwards"),
        ("..1%", "not a quantity"),
        ("nan", "not a quantity"),
    ],
)
def test_bad_budgets(text: str, says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        Budget.parse(text)


def test_a_budget_below_one_parameter() -> None:
    with pytest.raises(BudgetError, match="leaves none"):
        Budget.parse("0.0000001%").limits(MINILM)


def test_a_range_that_is_empty_here() -> None:
    with pytest.raises(BudgetError, match="empty on this backbone"):
        Budget.parse("1%..100k").limits(MINILM)


@given(thousandths=st.integers(1, 100_000))
def test_shares_are_rounded_down_exactly(thousandths: int) -> None:
    text = f"{thousandths / 1000:.3f}%"
    assert Budget.parse(text).limits(MINILM)[1] == MINILM.parameters * thousandths // 100_000


def test_counts_show_themselves_with_separators_and_the_share() -> None:
    found = Counts(113_566, 120_000, 770, 22_713_216)
    assert repr(found) == "Counts(113,566 deployed (0.499 % of 22,713,216), 120,000 trained, 770 head)"
    made = found._repr_html_()
    for text in ("113,566", "0.499 %", "120,000", "770", "22,713,216"):
        assert f">{text}<" in made


def test_what_no_graph_takes_is_not_counted_either() -> None:
    body = {"name": "r", "layers": [{"attach": ["coda"]}], "model": ["mean_pooling"]}
    with pytest.raises(CompositionError, match="coda and mean_pooling would each take the place"):
        count(Recipe.from_dict(body), spec_of(BertConfig()))
