"""Rows of conversations: what a language model is asked and what it shall answer, in the field's layouts.

A row becomes a list of messages `{"role": …, "content": …}` with the roles `system`, `user` and `assistant`;
what the assistant says is learnt, unless the message has the `weight` 0 (OpenAI's name for it), which all but
the last answer may have. A plain text is one message of the assistant's that nobody asked for.

Layouts: `messages` (OpenAI; also in TRL), `conversations` (ShareGPT: `from` and `value`), a prompt and a
completion under their usual names, `instruction`, `input` and `output` (Alpaca, whose `input` may be empty),
a source and a target (see `PAIRS`), and `text`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from autopeft.errors import DataError
from autopeft.tasks.copies import Input
from autopeft.tasks.kinds.schema import Schema, check_there
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    is_unicode,
    listed,
    number_of,
    obvious_column,
    refuse_rows,
)
from autopeft.tasks.translations import language_columns

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = [
    "ANSWERS",
    "CHATS",
    "MESSAGES",
    "PAIRS",
    "PROMPTS",
    "AnswersSchema",
    "Conversation",
    "asked_of",
    "is_chat",
    "pair_columns",
    "problems_of",
    "read_conversations",
    "with_turns",
]

Conversation: TypeAlias = list[dict[str, Any]]

CHATS = ("messages", "conversations", "conversation")
"""Names of columns of whole conversations."""
PROMPTS = ("prompt", "instruction", "question", "query")
"""Names of columns that hold what is asked."""
ANSWERS = ("completion", "response", "output", "answer")
"""Names of columns that hold what shall be answered."""
PAIRS = (
    ("source", "target"), ("src", "tgt"), ("input", "output"), ("input_text", "target_text"),
    ("text", "summary"), ("document", "summary"), ("dialogue", "summary"), ("article", "summary"),
    ("article", "highlights"),
)  # fmt: skip
"""Names of columns that hold a source and its target; a column `translation` has a column for each language
(see `autopeft.tasks.translations`), of which the first is the source."""
_TEXTS = ("text", "content")
_CLASSES = ("label", "labels", "target", "class", "category", "sentiment", "score", "rating", "gold_label")
_INPUT = "input"  # Alpaca's column of what an instruction is about
MESSAGES = "messages"
"""The field of rows that holds their messages."""
_SHAREGPT = {"human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant")
_CLAIM, _CLAIM_OF_TEXTS = 0.9, 0.5
_PLENTY = 20  # different values that classes may have in any data
_FREE = 0.5

_NO_LIST = "something that is no list of messages"
_NO_TEXT = "a message that is not text"
_NO_ANSWER, _NO_PROMPT = "an empty answer", "an empty prompt"
_ROLE = "a role other than system, user and assistant"
_ORDER = "roles out of order (system may come first, then user and assistant take turns)"
_LAST = "a last message that is not the assistant's"
_NOT_UNICODE = "text that is not Unicode"
_WEIGHT = "an answer whose weight is neither 0 nor 1"
_UNLEARNT = "a last answer of weight 0, which is not learnt (end each conversation with one that is)"
_EMPTY_TEXT, _NOT_TEXT = "no text", "something that is not text"


class AnswersSchema(Schema):
    """Labels are the answers' texts.

    Attributes:
        learns_texts: whether texts alone are learnt, without an answer.
    """

    learns = "answers"
    learns_texts: ClassVar[bool] = True

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims what nothing else is.

        Lists of messages are nothing else. Prompts with answers are claimed where no other column has the
        name of classes, or where the answers that were named are as many texts as no classes are, or a
        translation. Texts alone are claimed where there is no other column, if they are learnt."""
        table = tables["train"]
        try:
            chosen = self.columns(table, named)
        except DataError:
            return 0.0
        if is_chat(table, chosen.text):
            return _CLAIM
        if chosen.label is None:
            alone = self.learns_texts and list(table.columns) == [chosen.text] and named.text is None
            return _CLAIM_OF_TEXTS if alone else 0.0
        if named.label is None and not any(n.lower() in _CLASSES for n in table.columns if n != chosen.label):
            return _CLAIM
        if chosen.label in language_columns(table):
            return _CLAIM
        if named.label is None:
            return 0.0
        answers = table.columns[chosen.label]
        different = {answer for answer in answers if isinstance(answer, str)}
        free = len(different) > max(_PLENTY, _FREE * len(answers))
        return _CLAIM if free and any(number_of(answer) is None for answer in different) else 0.0

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """The column of whole conversations or plain texts as `text`; of prompts as `text` and of answers as
        `label`.

        Raises:
            DataError: a named column does not exist, there are second texts, or no column has an obvious
            name.
        """
        check_named(table, (("--text", named.text), ("--label", named.label)))
        if named.text_pair is not None:
            raise DataError(
                f"A conversation has no second text, but --text-pair names {named.text_pair!r}; name the "
                "column of prompts with --text and that of answers with --label."
            )
        text, label = named.text, named.label
        if text is None and label is None:
            whole = obvious_column(table, CHATS)
            if whole is not None:
                return Columns(whole, None, None)
        if text is None:
            # An answer that was named stays.
            text, answers = obvious_column(table, PROMPTS), label or obvious_column(table, ANSWERS)
            if text is not None and answers is not None:
                label = answers
            else:
                text, label = pair_columns(table, label) or (obvious_column(table, _TEXTS), label)
        elif label is None and not is_chat(table, text):
            label = _target_of(table, text) or obvious_column(table, ANSWERS)
        if text is None:
            raise DataError(
                f"{table.where} has no column with an obvious name for conversations "
                f"({', '.join(CHATS[:2])}), prompts and answers (prompt, completion), sources and targets "
                f"(source, target) or texts; it has {listed(list(table.columns))}. Name that of prompts with "
                "--text and that of answers with --label."
            )
        if text == label:
            raise DataError(f"One column of {table.where} cannot be prompt and answer at once: {text!r}.")
        return Columns(text, None, label)

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """Shortest, longest and mean answer in letters."""
        if not len(labels):
            return ""
        letters = [len(answer) for answer in labels]
        return f"answers of {min(letters):,} to {max(letters):,} letters, mean {np.mean(letters):,.0f}"

    def alike(self, rows: Split) -> list[Input]:
        """What is asked, whatever its capitals and white space."""
        return [(" ".join(text.casefold().split()),) for text in rows.texts]

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The columns of what is asked; as `label` that of answers, where there is one, as their likelihood
        is told: it need not be.

        Raises:
            DataError: a named column does not exist, or no column has an obvious name.
        """
        check_named(table, (("--text-column", named.text), ("--label", named.label)))
        known = (*CHATS, *PROMPTS, *dict.fromkeys(source for source, _ in PAIRS), *_TEXTS)
        text = named.text or obvious_column(table, known) or next(iter(language_columns(table)), None)
        if text is None:
            raise DataError(
                f"{table.where} has no column with an obvious name for what is asked "
                f"({', '.join(CHATS[:2])}, {', '.join(PROMPTS)}, source, {_TEXTS[0]}); it has "
                f"{listed(list(table.columns))}. Name it with --text-column (text_column=…)."
            )
        if named.label is not None or is_chat(table, text):
            return Columns(text, None, named.label)
        target = _target_of(table, text)
        if target is not None or text.lower() in _TEXTS:
            return Columns(text, None, target)
        answers = obvious_column(table, ANSWERS)
        return Columns(text, None, None if answers == text else answers)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that ask nothing what is wrong with them."""
        return problems_of(table, columns, asked=True)


def pair_columns(table: Table, label: str | None = None) -> tuple[str, str] | None:
    """The columns of sources and targets, where they have obvious names; `None` where they have not.

    Args:
        label: the column of targets, where it is known.
    """
    lower = {name.lower(): name for name in reversed(list(table.columns))}
    known = [(lower[a], lower[b]) for a, b in PAIRS if a in lower and b in lower]
    languages = language_columns(table)
    known += [(a, b) for a in languages[:1] for b in languages[1:2]]
    known += [(a, b) for a in languages for b in languages if a != b and b == label]
    return next((pair for pair in known if label in (None, pair[1])), None)


def _target_of(table: Table, text: str) -> str | None:
    """The column of targets beside one of sources."""
    lower = {name.lower(): name for name in reversed(list(table.columns))}
    known = [lower[b] for a, b in PAIRS if a == text.lower() and b in lower]
    others = [name for name in language_columns(table) if name != text]
    return next(iter(known), others[0] if text in language_columns(table) and len(others) == 1 else None)


def is_chat(table: Table, column: str) -> bool:
    """Whether the values of a column are lists, as those of conversations are."""
    return any(isinstance(value, list | tuple | np.ndarray) for value in table.columns[column])


# Rows
# ------------------------------------------------------------------------------------------------------


def read_conversations(table: Table, columns: Columns, *, asked: bool = False, plain: bool = True) -> RawRows:
    """The rows of a table as conversations: the field `messages` of what is returned. Its texts are what the
    model is asked, its labels the last answers; of a plain text both are the text.

    Args:
        asked: whether rows may lack their last answer, as the model is to give it; their labels are empty.
        plain: whether a text without an answer is a plain one; else it is what a user says.

    Raises:
        DataError: there are no rows, or some are no conversations; the message gives their numbers.
    """
    for name in (columns.text, columns.label):
        if name is not None:
            check_there(table, name)
    if not len(table):
        raise DataError(f"{table.where} has no rows.")
    found = problems_of(table, columns, asked=asked)
    told: dict[int, tuple[str, str]] = {}
    for i, what in found.items():
        column = columns.text
        if columns.label is not None:  # a problem lies in the answer where the prompt is sound
            sound = what in (_NO_TEXT, _NOT_UNICODE) and _problem(table.columns[columns.text][i]) is None
            column = columns.label if sound or what == _NO_ANSWER else columns.text
        told[i] = (column, what)
    for column, what in dict.fromkeys(told.values()):
        refuse_rows(table, column, what, [i for i, problem in told.items() if problem == (column, what)])
    inputs = _inputs(table, columns, asked=asked)
    messages: list[Conversation] = []
    for value in _rows(table, columns, asked=asked):
        if isinstance(value, str):
            messages.append([{"role": "assistant" if plain else "user", "content": value}])
            continue
        messages.append([])
        for message in value:
            role, content = _said(message)
            if content and content.strip():
                unlearnt = role == "assistant" and not _weight(message)
                weight = {"weight": 0} if unlearnt else {}
                messages[-1].append({"role": str(role), "content": content, **weight})
    fields: dict[str, list[Any]] = {MESSAGES: messages}
    if inputs is not None:
        fields[inputs] = list(table.columns[inputs])
    return RawRows(
        table.where,
        [asked_of(row) for row in messages],
        None,
        [row[-1]["content"] if row[-1]["role"] == "assistant" else "" for row in messages],
        fields,
    )


def with_turns(messages: Conversation, examples: Sequence[Conversation]) -> Conversation:
    """A conversation with others before it as earlier turns, whose answers are neither learnt nor scored:
    they have the `weight` 0 and are an `example`.

    What its system says stays first, and that of the others is left out.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    earlier = [
        {**message, "weight": 0, "example": True} if message["role"] == "assistant" else message
        for example in examples
        for message in example
        if message["role"] != "system"
    ]
    return [*system, *earlier, *messages[len(system) :]]


def asked_of(messages: Conversation) -> str:
    """What the model is asked for the last answer: the prompt, or all messages before with their roles."""
    before = messages if messages[-1]["role"] != "assistant" else messages[:-1]
    if len(before) < 2:
        return str((before or messages)[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in before)


def problems_of(table: Table, columns: Columns, *, asked: bool = False) -> dict[int, str]:
    """Of the rows that are no conversations what is wrong with them; `asked` as in `read_conversations`."""
    rows = _rows(table, columns, asked=asked)
    found = {i: _problem(value, asked=asked) for i, value in enumerate(rows)}
    if columns.text.lower() in CHATS:  # as a CSV file has them
        found |= {
            i: _NO_LIST for i, value in enumerate(table.columns[columns.text]) if isinstance(value, str)
        }
    return {i: problem for i, problem in found.items() if problem is not None}


def _rows(table: Table, columns: Columns, *, asked: bool = False) -> list[Any]:
    """The value of each row: of a column, or prompt and answer as messages."""
    texts = list(table.columns[columns.text])
    inputs = _inputs(table, columns, asked=asked)
    for i, more in enumerate(() if inputs is None else table.columns[inputs]):
        if (
            isinstance(texts[i], str)
            and more is not None
            and not (isinstance(more, str) and not more.strip())
        ):
            texts[i] = f"{texts[i]}\n\n{more}" if isinstance(more, str) else more
    if columns.label is None:
        return texts
    rows = []
    for text, answer in zip(texts, table.columns[columns.label], strict=True):
        row = [{"role": "user", "content": text}]
        # A cell is empty as CSV, JSON and pandas have that.
        empty = answer is None or (isinstance(answer, str) and not answer.strip())
        if not asked or not (empty or (isinstance(answer, float) and math.isnan(answer))):
            # JSON, Parquet and folders of CSV files have whole numbers for their text.
            whole = isinstance(answer, int | np.integer) and not isinstance(answer, bool)
            row.append({"role": "assistant", "content": str(answer) if whole else answer})
        rows.append(row)
    return rows


def _inputs(table: Table, columns: Columns, *, asked: bool = False) -> str | None:
    """Alpaca's column of inputs, where there is one."""
    if columns.text.lower() != "instruction" or (columns.label is None and not asked):
        return None
    return next((n for n in table.columns if n.lower() == _INPUT and n != columns.label), None)


def _said(message: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Role and content of a message in either layout."""
    if "role" in message:
        return message["role"], message.get("content")
    role = message.get("from")
    return (_SHAREGPT.get(role, role) if isinstance(role, str) else role), message.get("value")


def _problem(value: Any, *, asked: bool = False) -> str | None:
    if isinstance(value, str):
        return _EMPTY_TEXT if not value.strip() else None if is_unicode(value) else _NOT_UNICODE
    if not isinstance(value, list | tuple | np.ndarray):
        return _EMPTY_TEXT if value is None else _NOT_TEXT
    if not len(value) or not all(isinstance(message, Mapping) for message in value):
        return _NO_LIST
    said = [_said(message) for message in value]
    if any(role not in _ROLES for role, _ in said):
        return _ROLE
    roles = [role for role, _ in said]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
        return _ORDER
    if turns[-1] != "assistant" and not asked:
        return _LAST
    for role, content in said:
        if content is None or (isinstance(content, str) and not content.strip()):
            if role != "system":
                return _NO_ANSWER if role == "assistant" else _NO_PROMPT
        elif not isinstance(content, str):
            return _NO_TEXT
        elif not is_unicode(content):
            return _NOT_UNICODE
    weights = [_weight(message) for message, role in zip(value, roles, strict=True) if role == "assistant"]
    if any(not isinstance(w, int | float | np.number) or w not in (0, 1) for w in weights):
        return _WEIGHT
    return _UNLEARNT if roles[-1] == "assistant" and not weights[-1] else None


def _weight(message: Mapping[Any, Any]) -> Any:
    """The weight of an answer; 1 where it has none, as Parquet and pandas have that."""
    weight = message.get("weight")
    return 1 if weight is None or (isinstance(weight, float) and math.isnan(weight)) else weight
