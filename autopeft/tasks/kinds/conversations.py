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
from typing import Any, TypeAlias

import numpy as np

from autopeft.errors import DataError
from autopeft.tasks.kinds.schema import check_there
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    is_unicode,
    listed,
    number_of,
    refuse_rows,
)
from autopeft.tasks.translations import language_columns

__all__ = [
    "ANSWERS",
    "CHATS",
    "MESSAGES",
    "PAIRS",
    "PROMPTS",
    "Conversation",
    "asked_columns",
    "asked_of",
    "conversation_columns",
    "is_chat",
    "pair_columns",
    "problems_of",
    "read_conversations",
    "sureness",
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


# Columns
# ------------------------------------------------------------------------------------------------------


def conversation_columns(table: Table, named: ColumnNames) -> Columns:
    """The column of whole conversations or plain texts as `text`; of prompts as `text` and of answers as
    `label`.

    Raises:
        DataError: a named column does not exist, there are second texts, or no column has an obvious name.
    """
    check_named(table, (("--text", named.text), ("--label", named.label)))
    if named.text_pair is not None:
        raise DataError(
            f"A conversation has no second text, but --text-pair names {named.text_pair!r}; name the column "
            "of prompts with --text and that of answers with --label."
        )
    lower = {name.lower(): name for name in reversed(list(table.columns))}
    text, label = named.text, named.label
    if text is None and label is None:
        whole = _first(lower, CHATS)
        if whole is not None:
            return Columns(whole, None, None)
    if text is None:
        text, label = _obvious(table, lower, label)
    elif label is None and not is_chat(table, text):
        label = _target_of(table, text) or _first(lower, ANSWERS)
    if text is None:
        raise DataError(
            f"{table.where} has no column with an obvious name for conversations ({', '.join(CHATS[:2])}), "
            "prompts and answers (prompt, completion), sources and targets (source, target) or texts; it has "
            f"{listed(list(table.columns))}. Name that of prompts with --text and that of answers with "
            "--label."
        )
    if text == label:
        raise DataError(f"One column of {table.where} cannot be prompt and answer at once: {text!r}.")
    return Columns(text, None, label)


def _obvious(table: Table, lower: Mapping[str, str], label: str | None) -> tuple[str | None, str | None]:
    """What is asked and what is answered, by their names; an answer that was named stays."""
    text = _first(lower, PROMPTS)
    found = label or (None if text is None else _first(lower, ANSWERS))
    if text is not None and found is not None:
        return text, found
    pair = pair_columns(table, label)
    return pair or (_first(lower, _TEXTS), label)


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


def asked_columns(table: Table, named: ColumnNames) -> Columns:
    """The columns of what a model is asked; as `label` that of answers, where there is one: it need not be.

    Raises:
        DataError: a named column does not exist, or no column has an obvious name.
    """
    check_named(table, (("--text-column", named.text), ("--label", named.label)))
    lower = {name.lower(): name for name in reversed(list(table.columns))}
    known = (*CHATS, *PROMPTS, *dict.fromkeys(source for source, _ in PAIRS), *_TEXTS)
    text = named.text or _first(lower, known) or next(iter(language_columns(table)), None)
    if text is None:
        raise DataError(
            f"{table.where} has no column with an obvious name for what is asked ({', '.join(CHATS[:2])}, "
            f"{', '.join(PROMPTS)}, source, {_TEXTS[0]}); it has {listed(list(table.columns))}. Name it with "
            "--text-column (text_column=…)."
        )
    if named.label is not None or is_chat(table, text):
        return Columns(text, None, named.label)
    target = _target_of(table, text)
    if target is not None or text.lower() in _TEXTS:
        return Columns(text, None, target)
    answers = _first(lower, ANSWERS)
    return Columns(text, None, None if answers == text else answers)


def _first(lower: Mapping[str, str], known: Sequence[str]) -> str | None:
    return next((lower[name] for name in known if name in lower), None)


def is_chat(table: Table, column: str) -> bool:
    """Whether the values of a column are lists, as those of conversations are."""
    return any(_is_list(value) for value in table.columns[column])


def sureness(tables: Mapping[str, Table], named: ColumnNames, *, plain: bool = True) -> float:
    """How surely tables are conversations, from 0 to 1; see `autopeft.tasks.kinds.Schema.claim`.

    Lists of messages are nothing else. Prompts with answers are claimed where no other column has the name of
    classes, or where the answers that were named are as many texts as no classes are, or a translation. Texts
    alone are claimed where there is no other column, if they are wanted.

    Args:
        plain: whether texts alone are.
    """
    train = tables["train"]
    try:
        chosen = conversation_columns(train, named)
    except DataError:
        return 0.0
    if is_chat(train, chosen.text):
        return 0.9
    if chosen.label is None:
        alone = plain and list(train.columns) == [chosen.text] and named.text is None
        return 0.5 if alone else 0.0
    if named.label is None and not any(n.lower() in _CLASSES for n in train.columns if n != chosen.label):
        return 0.9
    if chosen.label in language_columns(train):
        return 0.9
    return 0.9 if named.label is not None and _free_text(train.columns[chosen.label]) else 0.0


def _free_text(answers: Sequence[Any]) -> bool:
    different = {answer for answer in answers if isinstance(answer, str)}
    if len(different) <= max(_PLENTY, _FREE * len(answers)):
        return False
    return any(number_of(answer) is None for answer in different)


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
    told = {i: (_column_of(table, columns, i, problem), problem) for i, problem in found.items()}
    for column, what in dict.fromkeys(told.values()):
        refuse_rows(table, column, what, [i for i, problem in told.items() if problem == (column, what)])
    inputs = _inputs(table, columns, asked=asked)
    messages = [_conversation(value, plain=plain) for value in _rows(table, columns, asked=asked)]
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


def _column_of(table: Table, columns: Columns, row: int, problem: str) -> str:
    """The column that a problem of a row lies in: that of the answers where the prompt is sound."""
    if columns.label is None:
        return columns.text
    sound = problem in (_NO_TEXT, _NOT_UNICODE) and _problem(table.columns[columns.text][row]) is None
    return columns.label if sound or problem == _NO_ANSWER else columns.text


def _rows(table: Table, columns: Columns, *, asked: bool = False) -> list[Any]:
    """The value of each row: of a column, or prompt and answer as messages."""
    texts = table.columns[columns.text]
    inputs = _inputs(table, columns, asked=asked)
    about = [None] * len(table) if inputs is None else table.columns[inputs]
    if columns.label is None:
        return [_with_input(text, more) for text, more in zip(texts, about, strict=True)]
    rows = []
    for text, more, answer in zip(texts, about, table.columns[columns.label], strict=True):
        prompt = {"role": "user", "content": _with_input(text, more)}
        without = asked and _is_missing(answer)
        rows.append([prompt] if without else [prompt, {"role": "assistant", "content": _as_text(answer)}])
    return rows


def _is_missing(answer: Any) -> bool:
    """Whether a cell is empty, as CSV, JSON and pandas have them."""
    if isinstance(answer, float):
        return math.isnan(answer)
    return answer is None or (isinstance(answer, str) and not answer.strip())


def _as_text(answer: Any) -> Any:
    """An answer that is a whole number as text: JSON, Parquet and folders of CSV files have them so."""
    return str(answer) if isinstance(answer, int | np.integer) and not isinstance(answer, bool) else answer


def _inputs(table: Table, columns: Columns, *, asked: bool = False) -> str | None:
    """Alpaca's column of inputs, where there is one."""
    if columns.text.lower() != "instruction" or (columns.label is None and not asked):
        return None
    return next((n for n in table.columns if n.lower() == _INPUT and n != columns.label), None)


def _with_input(text: Any, more: Any) -> Any:
    if more is None or (isinstance(more, str) and not more.strip()) or not isinstance(text, str):
        return text
    return f"{text}\n\n{more}" if isinstance(more, str) else more


def _is_list(value: Any) -> bool:
    """Whether a value is a list, as JSON, Parquet, `datasets` and pandas have them."""
    return isinstance(value, list | tuple | np.ndarray)


def _said(message: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Role and content of a message in either layout."""
    if "role" in message:
        return message["role"], message.get("content")
    role = message.get("from")
    return (_SHAREGPT.get(role, role) if isinstance(role, str) else role), message.get("value")


def _problem(value: Any, *, asked: bool = False) -> str | None:
    if isinstance(value, str):
        return _EMPTY_TEXT if not value.strip() else None if is_unicode(value) else _NOT_UNICODE
    if not _is_list(value):
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
    return _problem_of_content(said) or _problem_of_weights(value, roles)


def _problem_of_content(said: Sequence[tuple[str, Any]]) -> str | None:
    for role, content in said:
        if content is None or (isinstance(content, str) and not content.strip()):
            if role != "system":
                return _NO_ANSWER if role == "assistant" else _NO_PROMPT
        elif not isinstance(content, str):
            return _NO_TEXT
        elif not is_unicode(content):
            return _NOT_UNICODE
    return None


def _weight(message: Mapping[Any, Any]) -> Any:
    """The weight of an answer; 1 where it has none, as Parquet and pandas have that."""
    weight = message.get("weight")
    return 1 if weight is None or (isinstance(weight, float) and math.isnan(weight)) else weight


def _problem_of_weights(value: Any, roles: Sequence[str]) -> str | None:
    weights = [_weight(message) for message, role in zip(value, roles, strict=True) if role == "assistant"]
    if any(not isinstance(w, int | float | np.number) or w not in (0, 1) for w in weights):
        return _WEIGHT
    return _UNLEARNT if roles[-1] == "assistant" and not weights[-1] else None


def _conversation(value: Any, *, plain: bool = True) -> Conversation:
    if isinstance(value, str):
        return [{"role": "assistant" if plain else "user", "content": value}]
    found = []
    for message in value:
        role, content = _said(message)
        if content and content.strip():
            unlearnt = role == "assistant" and not _weight(message)
            found.append({"role": str(role), "content": content, **({"weight": 0} if unlearnt else {})})
    return found
