"""Chat templates of tokenizers, which are programs: conversations are rendered and tokenised by them."""

# ruff: noqa: E501  (templates)

from __future__ import annotations

from pathlib import Path
from random import Random

from support.language import TEMPLATE, chats, word_tokenizer

from autopeft.tasks.kinds.answers import encode_conversations
from autopeft.tasks.kinds.chat_templates import turn_end
from autopeft.tasks.kinds.conversations import Conversation

from .. import mutate
from ..surface import Call, First

_PARTS = (
    "{% for a in range(99999) %}", "{% endfor %}", "{% set n = namespace(s='ab') %}", "{% set n.s = n.s + n.s %}",
    "{% set n.s = [n.s, n.s] %}", "{% set x = x ~ x %}", "{{ n.s }}", "{{ 'a' * 9999999999 }}", "{{ 9 ** 9 ** 9 }}",
    "{{ '%9999999999d' % 1 }}", "{{ '{:>9999999999}'.format(1) }}", "{{ messages|tojson(indent=99999999) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}", "{% include 'recipe.yaml' %}",
    "{% import 'os' as os %}", "{{ messages.append(messages[0]) }}", "{{ messages[0].content.join(messages[0].content) }}",
    "{{ range(99999)|join(messages[0].content) }}", "{% generation %}", "{% endgeneration %}", "{{ raise_exception(1) }}",
    "{% if add_generation_prompt %}", "{% endif %}", "{{ strftime_now('%9999999d') }}", "{{ lipsum(9999) }}",
)  # fmt: skip


def _rendering(template: str, rows: list[Conversation]) -> Call:
    tokenizer = word_tokenizer(template)

    def call() -> object:
        turn_end(tokenizer)
        return encode_conversations(rows, tokenizer, 32, kind="causal_lm", cached=False)

    return call


def _first(part: str) -> First:
    long: Conversation = [
        {"role": "user", "content": "a" * 100_000}, {"role": "assistant", "content": "two"}
    ]  # fmt: skip
    return lambda folder: _rendering(TEMPLATE + part, [long])


FIRST = {part: _first(part) for part in _PARTS}


def hostile(random: Random, folder: Path) -> Call:
    pieces = [TEMPLATE, *(random.choice(_PARTS) for _ in range(random.randrange(6)))]
    random.shuffle(pieces)
    text = "".join(pieces)
    if random.random() < 0.5:
        text = mutate.text(random, text).decode("utf-8", errors="replace")
    return _rendering(text, chats(random.randrange(1, 4)))
