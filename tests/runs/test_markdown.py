"""Foreign text in Markdown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from autopeft.runs.markdown import fenced, plain

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "[click](http://example.org)",
    "![](http://example.org/x.png)",
    "`code` **bold** _it_ ~~no~~",
    "\x1b]0;title\x07\x9b31m",
    "# heading\n---\n| a | b |\n- item",
    "</script><!-- -->",
    "&lt;b&gt; &amp;",
    "a\u202eb\u2028c",
    "\ud800",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_found_in_it(text: str) -> None:
    written = plain(f"x {text}")
    assert written.isprintable()
    shown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(written)
    assert re.findall(r"<[^>]*>", shown) == ["<p>", "</p>"]


@given(st.text())
def test_any_text_is_one_paragraph(text: str) -> None:
    shown = MarkdownIt("commonmark", {"html": True}).render(f"It says {plain(text)}.")
    assert re.findall(r"<[^>]*>", shown) == ["<p>", "</p>"]


@pytest.mark.parametrize("text", ["https://example.org", "HTTP://example.org", "ftp://x", "www.example.org"])
def test_addresses_are_no_links(text: str) -> None:
    written = plain(text)
    assert "://" not in re.sub(r"&#\d+;://", "", written)
    assert not written.lower().startswith("www.")
    shown = MarkdownIt("commonmark").render(written)
    assert text in shown, "the reader sees the same"


def test_code_stays_in_its_block() -> None:
    shown = MarkdownIt("commonmark", {"html": True}).render(fenced("a\n````\n<b>", "yaml"))
    assert shown.count("<pre>") == 1
    assert "&lt;b&gt;" in shown
