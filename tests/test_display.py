"""Boxes for notebooks and figures as text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from autopeft.display import box, counted, folded, short, size, table

EVIL = "<script>alert(1)</script> \"quoted\" 'x' & <img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", list[str]()
        self.feed(text)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_text_is_escaped_wherever_it_stands() -> None:
    made = box(EVIL, table([EVIL], [[EVIL]], right=[0]), folded(EVIL, f"a: {EVIL}\n  b"), note=EVIL)
    page = Page(made)
    assert {tag for tag, _ in page.tags} <= {
        *("div", "b", "span", "table", "tr", "th", "td", "details", "summary", "pre")
    }
    assert all(set(attributes) <= {"style"} for _, attributes in page.tags)
    assert page.text.count(EVIL) == 6
    assert "a: " in page.text
    assert "\n  b" in page.text, "lines and their indents stay"


def test_no_style_fixes_the_ground_or_the_ink() -> None:
    """A dark notebook has light letters on a dark ground, and the box has to leave them."""
    for _, attributes in Page(box("t", table(["a"], [["b"]]), folded("s", "t"), note="n")).tags:
        for rule in (attributes.get("style") or "").split(";"):
            name, _, value = rule.partition(":")
            if name in ("color", "background"):
                assert value in ("inherit", "none"), rule
            assert "#" not in value


def test_what_is_long_is_cut_and_said() -> None:
    made = box("x" * 10_000, table((), [[str(i)] for i in range(1_000)]), folded("s", "line\n" * 10_000))
    page = Page(made)
    assert "… and 988 more" in page.text
    assert "x" * 199 + "…" in page.text
    assert len(made) < 40_000


def test_a_text_is_one_line_of_what_can_be_printed() -> None:
    assert short("a\n b\t\x1b[2Jc") == "a b �[2Jc"
    assert short("abcdef", 4) == "abc…"
    assert size(113_566, 113_566 / 22_713_216) == "113,566 deployed parameters, 0.499 % of the backbone"


def test_one_is_counted_in_the_singular() -> None:
    assert [counted(n, "seed") for n in (0, 1, 2, 1200)] == ["0 seeds", "1 seed", "2 seeds", "1,200 seeds"]


CELLS = """\
from transformers import BertConfig, BertForSequenceClassification
import autopeft
config = BertConfig(vocab_size=60, hidden_size=32, num_attention_heads=4, intermediate_size=64)
recipe = autopeft.Recipe.from_dict({"name": "<script>x</script>", "layers": [{"attach": ["lora", "ia3"]}]})
recipe
---
graph = autopeft.build_graph(recipe, autopeft.spec_of(config))
graph
---
autopeft.count(recipe, graph.spec)
---
hybrid = autopeft.attach(BertForSequenceClassification(config), recipe, seed=0)
hybrid
"""


@pytest.mark.slow
def test_a_real_notebook_shows_them(tmp_path: Path) -> None:
    """A kernel asks each object for its HTML, and keeps one line of text beside it."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(code.strip()) for code in CELLS.split("---\n")]
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for cell, words in zip(
        notebook.cells, ("Recipe(", "CompositionGraph(", "Counts(", "Hybrid("), strict=True
    ):
        (data,) = [output["data"] for output in cell.outputs if output.output_type == "execute_result"]
        assert data["text/plain"].startswith(words)
        assert "\n" not in data["text/plain"]
        page = Page(data["text/html"])
        assert "script" not in {tag for tag, _ in page.tags}
        assert len(data["text/html"]) < 20_000
    assert "<script>x</script>" in page.text


@pytest.mark.parametrize("value", ["&amp;", "&lt;b&gt;"])
def test_what_looks_escaped_is_text_too(value: str) -> None:
    assert Page(box(value)).text == value
