"""Templates write what transformers lets them write, and none takes the machine down."""

# ruff: noqa: E501  (templates)

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from typing import Any

import pytest
from jinja2.exceptions import TemplateAssertionError
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
    "loops": "{% for a in range(49999) %}{% for b in range(49999) %}{% endfor %}{% endfor %}",
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
    "a width of a width": "{{ '{0:{1}{2}}'.format('a', '9999', '9999') }}",
    "a width in a list": "{{ '{0:{1[0]}}'.format('a', ['99999999']) }}",
    "a width in a map": "{{ '{a:{b}}'.format_map({'a': 1, 'b': '99999999'}) }}",
    "many widths": "{{ ('{0:9999}' * 400000).format(1) }}",
    "many filtered widths": "{{ ('%(a)9999d' * 300000) % {'a': 1} }}",
    "a width in a list's text": "{{ ['%99999999d']|format(1) }}",
    "a filter of a range": "{{ range(9999)|join('x' * 60000) }}",
    "a filter of a filter": "{{ range(999)|map('string')|join('x' * 60000) }}",
    "a loop in a filter": "{% for i in range(999) %}{{ loop|join('x' * 60000) }}{% endfor %}",
    "searched again and again": "{% for i in range(4000) %}{% set x = range(9999)|max %}{% endfor %}",
    "compared again and again": "{% set a = 'a' * 999999 %}{% set b = 'a' * 999999 %}"
    "{% for i in range(9999) %}{% if a == b and a == b and 'b' in a %}{% endif %}{% endfor %}",
    "searched from its end": "{{ ('a' * 999999).rfind('ab' ~ 'a' * 499999) }}",
    "stripped": "{{ ('a' * 999999)|trim('b' * 499999 ~ 'a') }}",
    "lists summed": "{{ range(24000)|batch(1)|sum(start=[]) }}",
    "parts of texts": "{% set a = 'a' * 3999999 %}{% for i in range(49999) %}{% set x = a[1:] %}{% endfor %}",
    "products that are kept": "{% for i in range(9999) %}{% set x = 'a' * 3999999 %}{% endfor %}",
    "a name space that is shown": "{% set a = 'a' * 99999 %}{% set n = namespace() %}"
    + "".join(f"{{% set n.a{i} = a %}}" for i in range(50))
    + "{{ n }}",
    "bytes of a number": "{{ (1).to_bytes(4000000000, 'big') }}",
    "a text as bytes": "{% set a = ('a' * 100000).encode() %}{{ a * 40000 }}",
    "digits": "{{ 5|round(-99999999) }}",
    "digits of a power": "{{ 5|round(99999999, 'ceil') }}",
    "a text that is rounded": "{{ 'a'|round(9, 'ceil') }}",
    "a number's test of a text": "{{ '%4000000000d' is odd }}",
    "another of them": "{{ ['%4000000000d']|select('divisibleby', 1)|list }}",
    "numbers of equal hashes": "{{ range(0, 49999 * (2 ** 61 - 1), 2 ** 61 - 1)|unique|list }}",
    "a long number": "{{ ('f' * 3999999)|int(base=16) // ('f' * 1999999)|int(base=16) }}",
    "indented levels": "{% set n = namespace(s=[1]) %}{% for i in range(800) %}{% set n.s = [n.s] %}{% endfor %}"
    "{{ n.s|tojson(indent=99) }}",
    "comments": "{{ ('<!--' * 999999)|striptags }}",
    "a date": "{{ strftime_now('%c' * 999999) }}",
    "what a macro writes": "{% macro f() %}" + "a" * 99999 + "{% endmacro %}"
    "{% for i in range(49999) %}{% set x = f() %}{% endfor %}",
    "written": "{% for i in range(49999) %}{{ messages[0].content }}{% endfor %}",
}


# Written by templates of public models, or near to what they write.
FINE = {
    "of a long text": ("{{ messages[0].content|replace('<|endoftext|>', '<end>')|trim|length }}", "100000"),
    "a part": ("{{ messages[0].content.split('</think>')[-1].lstrip('\n')[:3] }}", "aaa"),
    "a format": ("{{ '**%05.1f** 20240101 {%s}' % (1, 'a') }}", "**001.0** 20240101 {a}"),
    "str.format": ("{{ '{0:*>4}|{1:>{{}}}'.replace('{{}}', '3').format('a', 'b') }}", "***a|  b"),
    "filters": (
        "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='role')|list }}",
        "['user']",
    ),
    "numbers": ("{{ (7 / 2)|round(1) }} {{ 10000000 * 20 // 3 }} {{ 3 is odd }}", "3.5 66666666 True"),
    "keywords": (
        "{{ dict(context=1, function=2)|tojson(indent=1) }}",
        '{\n "context": 1,\n "function": 2\n}',
    ),
    "views": (
        "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}{{ 'b' in {'b': 1}.keys() }}",
        "a1True",
    ),
    "loops": ("{% for i in range(20000) %}{% endfor %}{{ [3, 1]|sort|first }}{{ 5 in range(9) }}", "1True"),
}


@pytest.mark.parametrize("text", list(FINE))
def test_what_templates_do_passes(text: str) -> None:
    template, written = FINE[text]
    assert render(template, 200_000, messages=LONG) == written


@pytest.mark.parametrize("bomb", list(BOMBS))
def test_what_would_take_too_much_is_stopped(bomb: str) -> None:
    before = sys.gettrace()
    with pytest.raises((TooMuch, RecursionError, TemplateAssertionError)):
        render(BOMBS[bomb], 200_000, messages=LONG)
    assert sys.gettrace() is before


@pytest.mark.parametrize("collecting", [True, False])
def test_finalizers_of_others_do_not_run_where_python_allows_no_more_calls(
    collecting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    made: list[int] = []

    class Garbage:
        def __init__(self) -> None:
            self.cycle = self
            made.append(1)

        def __del__(self) -> None:
            self.calls(60)

        def calls(self, left: int) -> None:
            if left:
                self.calls(left - 1)

    threshold, enabled = gc.get_threshold(), gc.isenabled()
    gc.set_threshold(1)
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(RecursionError):
            render(
                "{% macro f() %}{{ make() }}{{ f() }}{% endmacro %}{{ f() }}", 9, make=lambda: bool(Garbage())
            )
        assert gc.isenabled() == collecting
    finally:
        gc.set_threshold(*threshold)
        (gc.enable if enabled else gc.disable)()
    gc.collect()
    assert len(made) > 9
    assert not failed


def test_what_the_sandbox_forbids_stays_forbidden() -> None:
    from jinja2.exceptions import SecurityError

    for text in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        given: dict[str, Any] = {"messages": [dict(LONG[0])]}
        with suppress(SecurityError):
            assert render(text, 1000, **given) == ""
        assert len(given["messages"]) == 1
