"""A user's own data in one file: CSV, TSV, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from support.saved_model import save_backbone

from autopeft.assets import load_tokenizer
from autopeft.report.evaluation import evaluation_sheets
from autopeft.tasks import Task, load_task
from autopeft.tasks.encode import encode
from autopeft.tasks.summary import summarise

from .. import mutate
from ..surface import Call, First

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".conll")
_LABELS: tuple[Any, ...] = (0, 1, "yes", "no", 0.5, 1.5, "a", "b", "c", 3, 4.25, True)
_WORDS = ("good", "bad", "film", "the", "a", "story", "was")


@cache
def tokenizer() -> Any:
    """Of a tiny BERT that is kept for as long as the process lives."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(str(save_backbone(Path(folder) / "bert")))


def rows(random: Random, number: int | None = None) -> list[dict[str, Any]]:
    """Rows that can be learned: a text, sometimes a second one, and a label of one of some kinds."""
    kind = random.choice((("yes", "no"), (0, 1), ("a", "b", "c"), "real"))
    for make in (questions, tagged, several_labels, answered):
        if random.random() < 0.15:
            return make(random, number or random.choice((20, 40, 60)))
    pair = random.random() < 0.3
    found: list[dict[str, Any]] = []
    for i in range(number or random.choice((20, 40, 60))):
        words = " ".join(random.choice(_WORDS) for _ in range(4))
        row = {"sentence1": f"{words} {i}", "sentence2": words} if pair else {"text": f"{words} {i}"}
        row["label"] = i * 0.37 - 3 if kind == "real" else kind[i % len(kind)]
        found.append(row)
    return found


def questions(random: Random, number: int) -> list[dict[str, Any]]:
    """Rows of questions with choices, in one of the layouts."""
    layout = random.randrange(3)
    found: list[dict[str, Any]] = []
    for i in range(number):
        texts = [random.choice(_WORDS) + str(k) for k in range(2 + i % 3)]
        if layout == 0:
            names = [*"ABCD"][: len(texts)]
            choices: Any = {"text": texts, "label": names} if random.random() < 0.5 else texts
            found.append({"question": f"which {i}", "choices": choices, "answer": names[i % len(texts)]})
        elif layout == 1:
            found.append({"ctx": f"a {i}", "endings": texts, "label": str(i % len(texts))})
        else:
            found.append({"goal": f"do {i}", "sol1": texts[0], "sol2": texts[1], "label": i % 2})
    return found


def answered(random: Random, number: int) -> list[dict[str, Any]]:
    """Questions on texts with their answers, in one of the layouts."""
    layout, found = random.randrange(3), list[dict[str, Any]]()
    for i in range(number):
        words = [random.choice(_WORDS) for _ in range(1 + i % 40)]
        at = random.randrange(len(words))
        start = len(" ".join(words[:at])) + (at > 0)
        spans = [] if i % 7 == 6 else [(words[at], start)] * (1 + i % 2)
        answers: Any = {"text": [text for text, _ in spans], "answer_start": [place for _, place in spans]}
        if layout == 0:
            answers = [{"text": text, "answer_start": place} for text, place in spans]
        found.append({"question": f"which {i}", "context": " ".join(words), "answers": answers})
    return found


def tagged(random: Random, number: int) -> list[dict[str, Any]]:
    """Rows of words with tags, in one of the layouts."""
    layout, found = random.randrange(3), list[dict[str, Any]]()
    for i in range(number):
        words = [random.choice(_WORDS) for _ in range(1 + i % 5)]
        tags: list[Any] = [random.choice(("O", "B-x", "I-x")) for _ in words]
        if layout == 0:
            found.append({"tokens": words, "ner_tags": tags})
        elif layout == 1:
            found.append({"words": words, "labels": [len(tag) % 3 for tag in tags]})
        else:
            found.append({"tokens": " ".join(words), "tags": " ".join(tags)})
    return found


def several_labels(random: Random, number: int) -> list[dict[str, Any]]:
    """Texts with lists of labels."""
    known = random.choice((("a", "b", "c"), (0, 1, 2)))
    return [
        {"text": f"{random.choice(_WORDS)} {i}", "labels": random.sample(known, i % 3)} for i in range(number)
    ]


def use(task: Task) -> None:
    """What a training does with a task before the first step."""
    json.dumps(task.describe())
    encode(task, tokenizer(), 16)
    summary = summarise(task, tokenizer(), 16)
    summary.lines()
    json.dumps(summary.to_dict()).encode()
    for sheet in evaluation_sheets(("x", "test", 1, 0.5), task):
        sheet.plain().encode()


def written(table: list[Any], suffix: str) -> bytes:
    """Rows in the format of a suffix, as far as it can hold them."""
    if suffix in (".json",):
        return mutate.bytes_of(_json(table))
    if suffix in (".jsonl", ".ndjson"):
        return mutate.bytes_of("\n".join(map(_json, table)))
    records = [row for row in table if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in records for name in row))
    if suffix == ".conll":
        return mutate.bytes_of(_sentences(records))
    if suffix == ".parquet":
        return _parquet({name: [row.get(name) for row in records] for name in names})
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in records)
    return mutate.bytes_of(out.getvalue())


def _sentences(records: list[dict[str, Any]]) -> str:
    """Rows with a word and what else stands at its place on each line."""
    lines = []
    for row in records:
        columns = [list(v) if isinstance(v, list) else _cell(v).split() for v in row.values()]
        lines += [" ".join(map(_cell, fields)) for fields in zip(*columns, strict=False)] + [""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        return "9" * 5000


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except ValueError:
        return "[" + "9" * 5000 + "]"


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    sink = io.BytesIO()
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            arrays[name] = pa.array(
                [_cell(value).encode("utf-8", "surrogatepass") for value in values], pa.binary()
            )
    try:
        parquet.write_table(
            pa.table({k.encode("utf-8", "replace").decode(): v for k, v in arrays.items()}), sink
        )
    except (pa.ArrowException, ValueError):
        return b"PAR1PAR1"
    return sink.getvalue()


def _nested(random: Random, table: list[dict[str, Any]]) -> Any:
    """Questions in SQuAD's own layout, some of its parts mutated."""
    paragraphs = [{"context": row.pop("context"), "qas": [row]} for row in table]
    whole: Any = {"version": "2", "data": [{"title": "a", "paragraphs": paragraphs}]}
    return mutate.tree(random, whole) if random.random() < 0.7 else whole


def hostile_file(random: Random, path: Path) -> None:
    """Write a hostile file of data."""
    suffix = path.suffix
    table: Any = rows(random)
    if random.random() < 0.7:
        table = mutate.tree(random, table)
    if not isinstance(table, list):
        table = [table]
    if suffix == ".json" and all(isinstance(row, dict) and "context" in row for row in table):
        table = _nested(random, table)
    content = mutate.bytes_of(_json(table)) if isinstance(table, dict) else written(table, suffix)
    kind = random.randrange(3)
    if kind == 0 and suffix != ".parquet":
        content = mutate.text(
            random, content.decode("utf-8", "replace"), tokens=('""', '"', ",", "\t", ";", "NaN")
        )
    elif kind == 0 or (kind == 1 and suffix == ".parquet"):
        content = mutate.data(random, content)
    path.write_bytes(content)


def hostile(random: Random, folder: Path) -> Call:
    path = folder / f"data{random.choice(_SUFFIXES)}"
    hostile_file(random, path)
    named: dict[str, Any] = {
        key: mutate.word(random) if random.random() < 0.3 else value
        for key, value in (
            ("text", "text"),
            ("label", "label"),
            ("kind", "regression"),
            ("metric", "accuracy"),
        )
        if random.random() < 0.15
    }
    drop = random.random() < 0.3
    return lambda: use(load_task(str(path), drop_empty=drop, stand_in=False, **named))


def _of(name: str, content: str | Callable[[], bytes], **options: Any) -> First:
    def write(folder: Path) -> Call:
        (folder / name).write_bytes(mutate.bytes_of(content) if isinstance(content, str) else content())
        return lambda: use(load_task(name, **options))

    return write


def _labelled(label: Any) -> str:
    return "".join(
        json.dumps({"text": f"text {i}", "label": label if i % 2 else 0}) + "\n" for i in range(40)
    )


def _asked(context: Any, answers: Any, question: Any = "which") -> str:
    row = {"question": question, "context": context, "answers": answers}
    return "".join(json.dumps({**row, "id": i}) + "\n" for i in range(40))


def _squad(context: Any, *questions: Any) -> str:
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]})


def _bad_utf8() -> bytes:
    texts = pa.array([b"\xff\xfe broken"] * 40, pa.binary()).cast(pa.string(), safe=False)
    return _table({"text": texts, "label": pa.array([0, 1] * 20)})


def _table(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def _same_names() -> bytes:
    sink = io.BytesIO()
    labels = pa.array([0, 1] * 20)
    parquet.write_table(
        pa.Table.from_arrays([pa.array(["a"] * 40), labels, labels], ["text", "label", "label"]), sink
    )
    return sink.getvalue()


def _times() -> bytes:
    return _table({"text": pa.array([2**60] * 40, pa.timestamp("us")), "label": pa.array([0, 1] * 20)})


def _nothings() -> bytes:
    rows = 30_000_000
    return _table({"text": pa.nulls(rows, pa.string()), "label": pa.nulls(rows, pa.int8())})


def _repeated() -> bytes:
    """A quarter of a megabyte that is five gigabytes of text."""
    rows = 20_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["long " * 50_000]))
    return _table({"text": texts, "label": pa.array([0, 1] * (rows // 2), pa.int8())}, store_schema=False)


def _special(make: Any) -> First:
    def write(folder: Path) -> Call:
        make(folder / "data.csv")
        return lambda: use(load_task("data.csv"))

    return write


def _socket(path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path.name)
    listening.close()


FIRST: dict[str, First] = {
    "labels of 400 digits": _of("a.jsonl", _labelled(int("9" * 400))),
    "labels of 400 digits in a CSV": _of("a.csv", "text,label\n" + f"a,{'9' * 400}\nb,1\n" * 20),
    "labels of 5,000 digits": _of("a.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}\n"),
    "labels of 1e300": _of("a.jsonl", _labelled(1e300), kind="regression"),
    "labels of 1e-300": _of("a.jsonl", _labelled(1e-300), kind="regression"),
    "labels that are infinite": _of("a.jsonl", _labelled(float("inf"))),
    "labels with a terminal's commands": _of("a.jsonl", _labelled("\x1b[31mred\x1b]0;title\x07\x9b2J")),
    "labels that are half a letter": _of("a.jsonl", _labelled("\ud800")),
    "labels that are HTML": _of("a.jsonl", _labelled("<script>alert(1)</script>")),
    "a column that is half a letter": _of("a.jsonl", '{"text": "a", "label": 1, "\\ud800": 2}\n' * 40),
    "texts that are half a letter": _of("a.jsonl", '{"text": "\\ud800", "label": 1}\n' * 40),
    "tags nested deeply": _of("a.jsonl", '{"tokens": ["a"], "tags": ' + "[" * 500 + "]" * 500 + "}\n"),
    "a row of a million words": _of(
        "a.jsonl", json.dumps({"tokens": ["a"] * 10**6, "tags": ["O"] * 10**6}) + "\n"
    ),
    "a tag of its own for each word": _of(
        "a.jsonl", "".join(json.dumps({"tokens": ["a"], "tags": [f"B-{i}"]}) + "\n" for i in range(20000))
    ),
    "numbers of tags beyond all others": _of(
        "a.jsonl", '{"tokens": ["a"], "tags": [' + "9" * 4000 + "]}\n", kind="token_classification"
    ),
    "words with a terminal's commands": _of(
        "a.jsonl",
        "".join(
            json.dumps({"tokens": [f"\x1b[31m{i}", "a"], "tags": ["\x1b]0;x\x07", "O"]}) + "\n"
            for i in range(40)
        ),
    ),
    "a line of a million fields": _of("a.conll", "a " * 10**6 + "\n"),
    "lists of labels that are no labels": _of(
        "a.jsonl", "".join(json.dumps({"text": f"a {i}", "labels": [{"b": i}]}) + "\n" for i in range(40))
    ),
    "a label of its own for each row": _of(
        "a.jsonl", "".join(json.dumps({"text": f"a {i}", "labels": [f"l{i}"]}) + "\n" for i in range(9000))
    ),
    "answers that begin before the text": _of(
        "a.jsonl", _asked("a film", {"text": ["film"], "answer_start": [-4]})
    ),
    "answers that begin nowhere": _of(
        "a.jsonl", _asked("a film", {"text": ["film"], "answer_start": [1e308]})
    ),
    "answers of other types": _of("a.jsonl", _asked("a film", {"text": {"film": 2}, "answer_start": "2"})),
    "an answer of each letter": _of(
        "a.jsonl", _asked("a" * 2000, {"text": ["a"] * 2000, "answer_start": list(range(2000))})
    ),
    "a context of a million letters": _of(
        "a.jsonl",
        json.dumps({"question": "a", "context": "a film " * 150_000, "answers": []})
        + "\n"
        + _asked("a film", {"text": ["film"], "answer_start": [2]}),
    ),
    "a question of a million letters": _of(
        "a.jsonl",
        json.dumps({"question": "a film " * 150_000, "context": "a", "answers": []})
        + "\n"
        + _asked("a film", {"text": ["film"], "answer_start": [2]}),
    ),
    "answers with a terminal's commands": _of(
        "a.jsonl", _asked("\x1b[31m a", {"text": ["\x1b]0;x\x07"], "answer_start": [0]})
    ),
    "a text before 100,000 questions": _of(
        "a.json", _squad("a film " * 1000, *[{"question": "a", "answers": []}] * 10**5)
    ),
    "paragraphs nested deeply": _of("a.json", _squad("a", {"question": [[[[["a"]]]]], "answers": {"a": {}}})),
    "paragraphs that are none": _of("a.json", '{"data": [{"paragraphs": [' + "[" * 900 + "]" * 900 + "]}]}"),
    "deep JSON": _of("a.json", "[" * 100000),
    "deep JSON that ends": _of("a.json", "[" * 100000 + "]" * 100000),
    "deep JSON in a row": _of("a.jsonl", '{"text": "a", "label": ' + "[" * 100000 + "]" * 100000 + "}\n"),
    "a key of its own in each row": _of(
        "a.jsonl", "".join(f'{{"text": "a", "label": 1, "k{i}": 1}}\n' for i in range(20000))
    ),
    "a column of its own for each comma": _of("a.csv", "," * 200000 + "\n"),
    "Parquet with bad UTF-8": _of("a.parquet", _bad_utf8),
    "Parquet of times beyond the calendar": _of("a.parquet", _times),
    "Parquet of two columns of one name": _of("a.parquet", _same_names),
    "Parquet of 30 million rows": _of("a.parquet", _nothings),
    "Parquet of long texts": _of("a.parquet", _repeated),
    "a pipe": _special(lambda path: os.mkfifo(path)),
    "a socket": _special(_socket),
    "a link to a device": _special(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _special(lambda path: path.symlink_to("data.csv")),
    "a folder called so": _special(lambda path: path.mkdir()),
    "a file of a terabyte": _special(
        lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40)
    ),
    "the zero device": lambda folder: lambda: use(load_task("/dev/zero")),
    "a name longer than a folder takes": lambda folder: lambda: use(load_task("x" * 300 + ".csv")),
    "a home that is nobody's": lambda folder: lambda: use(load_task("~nosuchuser/x.csv")),
}
