from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.language import save_decoder, word_tokenizer, write_chats
from transformers import AutoModelForCausalLM

from autopeft.tasks import load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_kind, get_metric
from autopeft.tasks.kinds.metric import own_metric
from autopeft.tasks.split import Split
from autopeft.training.samples import HANDFUL, MOST_TOKENS, Asked, asked_in, samples_of, told_of
from autopeft.training.scoring import evaluate, score_by_rows

ROWS = 40
ASKED = Asked("test", [f"question {i}" for i in range(ROWS)])
WANTED = [f"answer {i}" for i in range(ROWS)]
EXACT = get_metric("exact_match")


def written(right: range) -> list[str]:
    return [f"answer  {i}\n" if i in right else "something else" for i in range(ROWS)]


def test_right_and_wrong_answers_are_shown_the_same_each_time() -> None:
    found = samples_of(EXACT, ASKED, written(range(10)), WANTED)
    assert [s.right for s in found] == [True] * 3 + [False] * 3
    assert [s.value for s in found] == [1.0] * 3 + [0.0] * 3
    assert [s.row for s in found] == sorted(s.row for s in found)
    assert {s.split for s in found} == {"test"}
    assert [(s.prompt, s.expected) for s in found] == [(ASKED.texts[s.row], WANTED[s.row]) for s in found]
    assert found == samples_of(EXACT, ASKED, written(range(10)), WANTED)


def test_they_are_not_the_first_rows_alone() -> None:
    found = samples_of(EXACT, ASKED, written(range(ROWS)), WANTED)
    assert len(found) == HANDFUL
    assert max(s.row for s in found) > ROWS // 2


def test_predictions_are_told_right_ones_beside_wrong_ones() -> None:
    """Of rows with several labels; those of which there is nothing to tell come last."""
    kind = get_kind("multi_label")
    labels = [(int(i % 2), int(i % 5 == 0)) for i in range(ROWS)]
    rows = Split([f"text {i}" for i in range(ROWS)], None, labels)
    outputs = np.asarray(labels, dtype=np.float32) - 0.5
    outputs[:10] *= -1
    asked = Asked("test", rows.texts, rows, ("odd", "fifth"))
    found = told_of(kind.scorer, asked, outputs)
    assert [s.right for s in found].count(True) == 3
    assert [s.row for s in found] == sorted(s.row for s in found)
    assert all(s.right == (s.row >= 10) for s in found)
    assert {s.expected for s in found} <= {"odd", "fifth", "odd, fifth", "(none)"}
    assert found == told_of(kind.scorer, asked, outputs)
    assert [s.right for s in told_of(kind.scorer, asked, -outputs)].count(True) == 3
    right = np.asarray(labels, dtype=np.float32) - 0.5
    assert [s.right for s in told_of(kind.scorer, asked, right)] == [True] * HANDFUL


def test_all_of_few_rows_are_shown_once() -> None:
    few = Asked("test", ASKED.texts[:4])
    found = samples_of(EXACT, few, written(range(2))[:4], WANTED[:4])
    assert [s.row for s in found] == [0, 1, 2, 3]


def test_a_metric_without_values_of_rows_shows_right_ones_first() -> None:
    def own(said: list[str], expected: list[str]) -> float:
        return 0.5

    found = samples_of(own_metric(own, generated=True), ASKED, written(range(10)), WANTED)
    assert [s.right for s in found] == [True] * 3 + [False] * 3
    assert {s.value for s in found} == {None}


@pytest.mark.parametrize(
    "values", [lambda a, b: 1 / 0, lambda a, b: [float("nan")] * len(a), lambda a, b: [1]]
)
def test_a_metric_whose_values_fail_costs_no_search(values: Any) -> None:
    found = samples_of(replace(EXACT, by_row=values), ASKED, written(range(10)), WANTED)
    assert [s.right for s in found] == [True] * 3 + [False] * 3
    assert {s.value for s in found} == {None}


def test_texts_are_bounded_and_keep_their_end() -> None:
    asked = Asked("select", ["x" * 10**6 + " and how many?"])
    (found,) = samples_of(EXACT, asked, ["y" * 10**6], ["z" * 10**6])
    assert found.prompt.endswith("and how many?")
    assert max(map(len, (found.prompt, found.expected, found.written))) < 700


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("chats")
    model = AutoModelForCausalLM.from_pretrained(save_decoder(folder / "llama")).eval()
    return model, encode(load_task(str(write_chats(folder / "chats.jsonl"))), word_tokenizer(), 48)


def test_answers_are_those_that_were_scored(chats: tuple[Any, Any]) -> None:
    model, data = chats
    asked = asked_in(data.task, "test")
    assert asked is not None
    found = score_by_rows(model, data.test, "exact_match", asked=asked)
    texts = get_kind("causal_lm").scorer.generate(
        model, data.test, range(len(data.test)), get_kind("causal_lm").scorer.generation({})
    )
    assert found.samples
    for sample in found.samples:
        assert sample.prompt == data.task.splits["test"].texts[sample.row]
        assert sample.expected == data.test.truth[sample.row]
        assert sample.written == texts[sample.row]
    assert not score_by_rows(model, data.test, "exact_match").samples


def test_without_the_loss_rows_are_read_to_be_answered_alone(
    chats: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = chats
    asked = asked_in(data.task, "test")
    whole = score_by_rows(model, data.test, "rouge_l", asked=asked)
    assert whole.loss == whole.calibrated_loss
    assert whole.loss is not None
    monkeypatch.setattr(type(get_kind("causal_lm").scorer), "outputs", None)
    found = score_by_rows(model, data.test, "rouge_l", asked=asked, loss=False)
    assert found == replace(whole, loss=None, calibrated_loss=None)
    assert evaluate(model, data.test, "rouge_l") == whole.score


def test_a_few_are_written_where_the_metric_needs_none(
    chats: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = chats
    kind, asked_for = get_kind("causal_lm"), []
    plain = type(kind.scorer).generate

    def counted(self: Any, model: Any, split: Any, rows: Any, how: Any, **options: Any) -> list[str]:
        asked_for.append((len(rows), how.max_new_tokens))
        return plain(self, model, split, rows, how, **options)

    monkeypatch.setattr(type(kind.scorer), "generate", counted)
    found = score_by_rows(model, data.test, "likelihood", asked=asked_in(data.task, "test"))
    assert asked_for == [(min(HANDFUL, len(data.test)), MOST_TOKENS)]
    assert len(found.samples) == min(HANDFUL, len(data.test))
    assert {s.value for s in found.samples} == {None}
    assert model.training is False


def test_where_nothing_is_asked_or_written_there_are_none(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(f'{{"text": "one two {i}"}}\n' for i in range(40)))
    assert asked_in(load_task(str(plain), kind="causal_lm"), "test") is None
    table = tmp_path / "classes.csv"
    table.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    assert asked_in(load_task(str(table)), "test") is None
