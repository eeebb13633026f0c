"""Examples before what is asked: which are taken, that they are not scored, and that rows stay whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.language import TEMPLATE, word_tokenizer

from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.conversations import with_turns
from autopeft.tasks.split import Split

LM, CHOICE = get_kind("causal_lm"), get_kind("multiple_choice")


def turn(asked: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def chats(*rows: list[dict[str, Any]]) -> Split:
    return Split(
        [r[0]["content"] for r in rows], None, [r[-1]["content"] for r in rows], {"messages": list(rows)}
    )


ROWS = chats(
    turn("what follows one", "two"),
    [{"role": "system", "content": "be brief"}, *turn("what follows " + "is " * 8 + "two", "three")],
    turn("what is four", "five"),
)
EXAMPLES = chats(
    [{"role": "system", "content": "be"}, *turn("what follows three", "four")],
    turn("what follows five", "one"),
)


def decoded(split: Split, row: int, tokenizer: Any, kind: Any = LM) -> tuple[str, str]:
    batch = kind.encoder.encode(split, tokenizer, 60, cached=False).collate([row])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    return tokenizer.decode(ids[batch["attention_mask"][0].bool()]), tokenizer.decode(labels[labels >= 0])


def test_the_system_of_a_row_stays_first() -> None:
    found = with_turns(ROWS.fields["messages"][1], EXAMPLES.fields["messages"])
    assert [m["role"] for m in found] == ["system", *["user", "assistant"] * 3]
    assert found[0]["content"] == "be brief"
    assert [m.get("weight", 1) for m in found] == [1, 1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_examples_are_read_and_not_scored(template: str | None) -> None:
    tokenizer = word_tokenizer(template)
    found = LM.encoder.with_examples(ROWS, EXAMPLES, tokenizer, 60)
    assert found is not None
    assert len(found) == 3
    assert found.texts == ROWS.texts
    text, scored = decoded(found, 0, tokenizer)
    assert "what follows three" in text
    assert text.index("three") < text.index("five") < text.index("two")
    assert scored == decoded(ROWS, 0, tokenizer)[1], "the answer of the row alone"


def test_as_many_of_the_last_examples_as_leave_a_row_whole() -> None:
    tokenizer = word_tokenizer(None)
    plain = LM.encoder.encode(ROWS, tokenizer, 60, cached=False).lengths
    assert plain.tolist() == [5, 15, 5]
    found = LM.encoder.with_examples(ROWS, EXAMPLES, tokenizer, 16)
    assert found is not None
    encoded = LM.encoder.encode(found, tokenizer, 16, cached=False)
    assert not encoded.row_cut.any()
    assert [len(m) for m in found.fields["messages"]] == [6, 3, 6]
    shorter = LM.encoder.with_examples(ROWS, EXAMPLES, tokenizer, 12)
    assert shorter is not None
    assert [len(m) for m in shorter.fields["messages"]] == [4, 3, 4]
    assert shorter.fields["messages"][0][0]["content"] == "what follows five", "the last one"
    assert shorter.labels == ROWS.labels


def test_texts_that_nobody_asked_for_have_no_examples() -> None:
    plain = chats([{"role": "assistant", "content": "one two three"}])
    assert not LM.encoder.asks(plain)
    assert LM.encoder.asks(ROWS)
    assert LM.encoder.with_examples(plain, EXAMPLES, word_tokenizer(None), 60) is None
    assert LM.encoder.with_examples(ROWS, plain, word_tokenizer(None), 60) is None
    assert not get_kind("classification").encoder.asks(Split(["a"], None, [0]))
    assert get_kind("classification").encoder.with_examples(ROWS, EXAMPLES, word_tokenizer(None), 60) is None


def test_questions_with_choices_have_answered_ones_before_them() -> None:
    tokenizer = word_tokenizer(None)
    rows = Split(
        ["what follows one", "what is"], None, [1, 0], {"choices": [["one", "two"], ["five", "four", "two"]]}
    )
    examples = Split(["what follows four"], None, [1], {"choices": [["one", "five"]]})
    found = CHOICE.encoder.with_examples(rows, examples, tokenizer, 60)
    assert found is not None
    batch = CHOICE.encoder.encode(found, tokenizer, 60, cached=False).collate([0, 1])
    assert batch["beside_choice_of"][:, 0].tolist() == [0, 0, 1, 1, 1]
    first = tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
    assert first == "what follows four five what follows one one"
    assert torch.equal((batch["labels"] >= 0).sum(1), torch.ones(5, dtype=torch.int64))
