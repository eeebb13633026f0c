"""Tokens of conversations: which are learnt, where rows are cut, and what a chat template may do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.language import chats, word_tokenizer
from support.small_tokenizers import letters_with_marks
from transformers import PreTrainedTokenizerBase

from autopeft.errors import DataError, UsageError
from autopeft.tasks.kinds.conversation_tokens import IGNORED, EncodedConversations, encode_conversations
from autopeft.tasks.kinds.conversations import AnswersSchema, Conversation, read_conversations
from autopeft.tasks.table import ColumnNames, Table

ONE = [{"role": "user", "content": "what is one"}, {"role": "assistant", "content": "two three"}]
TWO = [*ONE, {"role": "user", "content": "what follows"}, {"role": "assistant", "content": "four"}]
TEXT = [{"role": "assistant", "content": "one two three four"}]


def encoded(
    *rows: Conversation, tokenizer: PreTrainedTokenizerBase | None = None, length: int = 64, **options: Any
) -> EncodedConversations:
    own = word_tokenizer() if tokenizer is None else tokenizer
    return encode_conversations(rows, own, length, kind="causal_lm", **{"cached": False, **options})


def words(found: EncodedConversations, row: int = 0) -> list[str]:
    part = slice(found.offsets[row], found.offsets[row + 1])
    tokens = word_tokenizer().convert_ids_to_tokens(found.ids[part].tolist())
    return [f"[{t}]" if learnt else t for t, learnt in zip(tokens, found.learnt[part], strict=True)]


def test_which_answers_are_learnt_is_told_of_what_is_measured() -> None:
    """Two answers of equal length: a mask that was measured for one is not the other's."""

    def weighed(*weights: int) -> EncodedConversations:
        turns = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "four"}]
        marked = [{**turns[1], "weight": weight} for weight in weights]
        return encoded([turns[0], marked[0], turns[0], marked[1]])

    first, second = weighed(1, 0), weighed(0, 1)
    assert first.fingerprint == second.fingerprint
    assert first.labels.tolist() == second.labels.tolist()
    assert first.labels_fingerprint != second.labels_fingerprint
    assert first.labels_fingerprint == weighed(1, 0).labels_fingerprint


def test_answers_and_ends_of_turns_are_learnt() -> None:
    found = words(encoded(TWO))
    assert " ".join(found) == (
        "<|start|> user what is one <|end|> <|start|> assistant [two] [three] [<|end|>] "
        "<|start|> user what follows <|end|> <|start|> assistant [four] [<|end|>]"
    )


def test_the_tokens_are_those_of_the_template() -> None:
    tokenizer = word_tokenizer()
    for row in chats(12):
        whole = tokenizer.apply_chat_template(row, tokenize=False)
        assert encoded(row).ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]


ASKED = [{"role": "user", "content": "is it"}, {"role": "assistant", "content": "yes"}] * 2
TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>SPACE{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>SPACE{% endif %}"
)


def test_no_space_is_read_before_an_answer_where_the_template_writes_none() -> None:
    tokenizer = letters_with_marks(TURNS.replace("SPACE", "\n"))
    whole = tokenizer.apply_chat_template(ASKED, tokenize=False).rstrip()
    found = encoded(ASKED, tokenizer=tokenizer, length=200)
    assert found.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(found.ids[found.learnt].tolist()) == ["y", "e", "s", "</s>"] * 2


@pytest.mark.parametrize("space", ["\n", " ", ""])
def test_what_is_asked_begins_what_was_learnt(space: str) -> None:
    """Also where a token of the whole text stands in the question and in the answer."""
    tokenizer = letters_with_marks(TURNS.replace("SPACE", space))
    found = encoded(ASKED, tokenizer=tokenizer, length=200)
    learnt = tokenizer.convert_ids_to_tokens(found.ids[found.learnt].tolist())
    assert "".join(learnt).replace("▁", "") == 2 * "yes</s>"
    for answers in (1, 2):
        asked = encoded(ASKED[: 2 * answers - 1], tokenizer=tokenizer, length=200, asked=True).ids.tolist()
        assert asked == found.ids[: len(asked)].tolist()
        assert found.learnt[len(asked) - 1 :][:2].tolist() == [False, True]


def test_without_a_template_an_end_token_ends_each_answer() -> None:
    plain = word_tokenizer(None)
    assert " ".join(words(encoded(TWO, tokenizer=plain))) == (
        "what is one [two] [three] [</s>] what follows [four] [</s>]"
    )
    endless = word_tokenizer(None, eos_token=None)
    assert " ".join(words(encoded(ONE, tokenizer=endless))) == "what is one [two] [three]"


def test_an_answer_of_weight_0_is_read_as_the_others_and_not_learnt() -> None:
    table = Table("data.jsonl", {"messages": [[TWO[0], {**TWO[1], "weight": 0}, *TWO[2:]]]}, {})
    [row] = read_conversations(table, AnswersSchema().columns(table, ColumnNames())).fields["messages"]
    assert " ".join(words(encoded(row))) == (
        "<|start|> user what is one <|end|> <|start|> assistant two three <|end|> "
        "<|start|> user what follows <|end|> <|start|> assistant [four] [<|end|>]"
    )
    plain = word_tokenizer(None)
    assert " ".join(words(encoded(row, tokenizer=plain))) == (
        "what is one two three </s> what follows [four] [</s>]"
    )
    for tokenizer in (plain, word_tokenizer()):
        assert np.array_equal(encoded(row, tokenizer=tokenizer).ids, encoded(TWO, tokenizer=tokenizer).ids)


def test_a_line_break_parts_prompt_and_answer_where_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    tokenizer = word_tokenizer(None)
    call = type(tokenizer).__call__

    def watched(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(text if isinstance(text, list) else [])
        return call(self, text, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", watched)
    spaced = [{"role": "user", "content": "what is "}, {"role": "assistant", "content": "two"}]
    encoded(ONE, spaced, tokenizer=tokenizer)
    assert seen == ["what is one\n", "two three", "what is ", "two"]


def test_a_plain_text_is_learnt_but_for_its_first_token() -> None:
    assert " ".join(words(encoded(TEXT))) == "one [two] [three] [four] [</s>]"


def test_a_token_that_begins_texts_stays_in_front() -> None:
    from tokenizers import processors

    tokenizer = word_tokenizer(None, bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    assert " ".join(words(encoded(TEXT, tokenizer=tokenizer))) == "<s> [one] [two] [three] [four] [</s>]"
    assert " ".join(words(encoded(ONE, tokenizer=tokenizer, length=5))) == "<s> one [two] [three] [</s>]"


def test_long_rows_lose_the_prompt_first() -> None:
    short = encoded(ONE, TEXT, length=8)
    assert " ".join(words(short)) == "is one <|end|> <|start|> assistant [two] [three] [<|end|>]"
    assert short.row_cut.tolist() == [1, 0]


def test_an_answer_that_does_not_fit_loses_its_end_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    long = [ONE[0], {"role": "assistant", "content": "one two three four five one two"}]
    found = encoded(long, ONE, length=5)
    assert " ".join(words(found)) == "assistant [one] [two] [three] [four]"
    assert found.row_cut.tolist() == [2, 1]
    assert "1 of 2 answers do not fit into 5 tokens" in caplog.text


def test_batches_have_labels_as_transformers_wants_them() -> None:
    found = encoded(ONE, TEXT)
    batch = found.collate([1, 0])
    assert batch["labels"].shape == batch["input_ids"].shape
    kept = batch["labels"] != IGNORED
    assert (batch["labels"][kept] == batch["input_ids"][kept]).all()
    assert kept.sum(1).tolist() == [4, 3]
    assert found.labels is not None
    assert found.labels.tolist() == [3, 4]


def test_some_rows_are_a_split_of_their_own() -> None:
    found = encoded(ONE, TEXT, TWO)
    part = found.take(np.array([2, 1]))
    assert words(part, 0) == words(found, 2)
    assert words(part, 1) == words(found, 1)
    a, b = part.collate([0, 1]), found.collate([2, 1])
    assert all((a[name] == b[name]).all() for name in b)
    assert part.row_cut.shape == (2,)


def test_tokens_are_kept_and_the_template_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    first = encoded(ONE, TWO, cached=True)
    other = encoded(ONE, TWO, tokenizer=word_tokenizer(None), cached=True)
    assert len(other.ids) < len(first.ids)
    monkeypatch.setattr(
        "autopeft.tasks.kinds.conversation_tokens._tokenise", lambda *_: pytest.fail("tokenised again")
    )
    again = encoded(ONE, TWO, cached=True)
    assert words(again, 1) == words(first, 1)
    assert again.row_cut.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages|length }} {{ messages[0].content }}", "otherwise once the next message is there"),
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages", "unexpected|expected"),
    ],
)
def test_a_template_that_does_not_serve_is_refused(template: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"begins with 'what is one': .*(?:{why})"):
        encoded(TWO, tokenizer=word_tokenizer(template))


def test_rows_without_anything_to_learn_are_refused() -> None:
    single = [{"role": "assistant", "content": "one"}]
    with pytest.raises(DataError, match="None of 1 rows has a token to be learnt"):
        encoded(single, tokenizer=word_tokenizer(None, eos_token=None))
    with pytest.raises(UsageError, match="does not fit the tokenizer"):
        encoded(ONE, length=3)
