"""Templates write what transformers lets them write, and none takes the machine down."""

# ruff: noqa: E501  (templates)

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import pytest
from support.language import TEMPLATE, chats, word_tokenizer

from autopeft.tasks.kinds.bounded_jinja import TooMuch, render
from autopeft.tasks.kinds.conversations import Conversation

# Shapes of public templates: Llama 2 and 3, Qwen, Mistral, Gemma.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
QWEN = (
    "{%- macro turn(role, text) %}{{- '<|start|> ' ~ role ~ ' ' ~ text ~ ' <|end|>\\n' }}{%- endmacro %}"
    "{%- set ns = namespace(last=messages|length - 1, found=[]) %}"
    "{%- for m in messages[::-1] %}{%- if m.role == 'user' and not ns.found %}{%- set ns.found = [m] %}{%- endif %}"
    "{%- endfor %}{%- for m in messages %}{%- if m.content is string and m.content.startswith('x') %}{%- continue %}"
    "{%- endif %}{{- turn(m.role, m.content) }}{%- endfor %}{{- ns.found[0].content|replace('is', '') if ns.found }}"
    "{{- {'a': [1, 2], 'b': ('c',)}|tojson(indent=2) }}{%- if add_generation_prompt %}{{- '<|start|>' }}{%- endif %}"
)
GENERATION = (
    "{% for m in messages %}{% generation %}{{ '%s: %d' % (m.role, loop.index) }}{% endgeneration %}"
    "{% endfor %}{{ bos_token }}{{ undefined_thing ~ 1 }}{{ (messages|map(attribute='role')|list)|join(', ') }}"
)


@pytest.mark.parametrize("text", [TEMPLATE, LLAMA_2, QWEN, GENERATION])
@pytest.mark.parametrize("prompt", [False, True])
def test_it_writes_what_transformers_writes(text: str, prompt: bool) -> None:
    tokenizer = word_tokenizer(text)
    for messages in chats(12):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        given = {"messages": messages, "tools": None, "documents": None, **tokenizer.special_tokens_map}
        assert render(text, 10_000, add_generation_prompt=prompt, **given) == wanted


LONG: Conversation = [{"role": "user", "content": "a" * 100_000}]
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "doubled by +": "{% set n = namespace(s='ab') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled by ~": "{% set n = namespace(s='ab') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "nested lists": "{% set n = namespace(s=[1]) %}{% for i in range(64) %}{% set n.s = [n.s, n.s] %}{% endfor %}",
    "nested maps": "{% set n = namespace(s=1) %}{% for i in range(64) %}{% set n.s = {1: n.s, 2: n.s} %}{% endfor %}",
    "times": "{{ 'a' * 10 ** 10 }}",
    "a product": "{{ 'a' * 9999999999 }}",
    "powers": "{{ 10 ** 10 ** 10 }}",
    "a width": "{{ 'a'.center(9999999999) }}",
    "a filter's width": "{{ 'a'|center(9999999999) }}",
    "a format": "{{ '%9999999999d' % 1 }}",
    "a filtered format": "{{ '%9999999999d'|format(1) }}",
    "str.format": "{{ '{:>9999999999}'.format(1) }}",
    "join": "{{ range(99999)|join(messages[0].content) }}",
    "str.join": "{{ messages[0].content.join(messages[0].content) }}",
    "replace": "{{ messages[0].content|replace('a', messages[0].content) }}",
    "str.replace": "{{ messages[0].content.replace('a', messages[0].content) }}",
    "indent": "{{ [1, 2]|tojson(indent=9999999999) }}",
    "written": "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
}


@pytest.mark.parametrize("bomb", list(BOMBS))
def test_what_would_take_too_much_is_stopped(bomb: str) -> None:
    before = sys.gettrace()
    with pytest.raises((TooMuch, RecursionError)):
        render(BOMBS[bomb], 200_000, messages=LONG)
    assert sys.gettrace() is before


def test_what_the_sandbox_forbids_stays_forbidden() -> None:
    from jinja2.exceptions import SecurityError

    for text in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        given: dict[str, Any] = {"messages": [dict(LONG[0])]}
        with suppress(SecurityError):
            assert render(text, 1000, **given) == ""
        assert len(given["messages"]) == 1
