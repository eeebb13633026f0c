"""What commands print and write of a stranger's input: it may hold no command of a terminal's, and no element
of a page but the package's own."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import typer
from support.page import Page

from autopeft.cli.app import app
from autopeft.errors import printable

__all__ = ["check_markdown", "check_page", "check_text", "command"]

_ALLOWED_SCRIPTS = 2
_FENCED = re.compile(r"^(`{3,})[a-z]*\n.*?^\1$", re.M | re.S)
_OWN_COMMENT = re.compile(r"^<!-- card of autopeft export, [ \w.,:]+ -->$", re.M)


@cache
def _command() -> typer.core.TyperGroup:
    found = typer.main.get_command(app)
    assert isinstance(found, typer.core.TyperGroup)
    return found


def command(*words: str) -> str:
    """Run a command in this process and return what it printed, which is checked.

    Raises:
        AutoPEFTError: the command does.
        AssertionError: it printed what a terminal acts on.
    """
    out, told = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        _command().main(args=list(words), prog_name="autopeft", standalone_mode=False)
    check_text(out.getvalue(), "stdout")
    check_text(told.getvalue(), "stderr")
    return out.getvalue()


def check_text(text: str, where: str) -> None:
    """Raises `AssertionError` where a text holds what a terminal acts on, or what turns or hides text."""
    found = next((c for c in text if printable(c, keep="\n\t") != c), None)
    assert found is None, f"{where} holds {found!r}: {text[max(0, text.index(found) - 60) :][:120]!r}"


def check_markdown(text: str, where: str) -> None:
    """Raises `AssertionError` where a model card holds such a thing, or an element of HTML, or a link."""
    check_text(text, where)
    front, body = ("", text) if not text.startswith("---\n") else text[4:].split("\n---\n", 1)
    prose = _OWN_COMMENT.sub("", _FENCED.sub("", body))
    for what in (r"<", r"(?<!\\)\]\(", r"(?i)\b(https?|ftp)://", r"(?<!\\)!\["):
        found = re.search(what, prose)
        assert found is None, f"{where} holds {found[0]!r}: {prose[max(0, found.start() - 60) :][:120]!r}"
    assert len(front) < 5000, f"{where} has a front matter of {len(front):,} letters"
    titles = re.findall(r"^# ", prose, re.M)
    assert len(titles) == 1, f"{where} has {len(titles)} titles"


def check_page(text: str, where: str) -> None:
    """Raises `AssertionError` where a report has a script, a handler or a link that are not its own."""
    text = text.replace(_library(), "/* plotly */")
    check_text(text, where)
    page = Page(text)
    scripts = [kind for kind, _ in page.scripts if kind == ""]
    assert len(scripts) == _ALLOWED_SCRIPTS, f"{where} has {len(scripts)} scripts"
    strange = {"iframe", "object", "embed", "img", "form", "base"} & {tag for tag, _ in page.elements}
    assert not strange, f"{where} holds {strange}"
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{where}: {tag} has {name}={value!r:.80}"
            assert name != "src", f"{where}: {tag} names {value!r:.80}"
            if name in ("href", "action"):
                assert value.startswith(("#", "data:")), f"{where}: {tag} leads to {value!r:.80}"


@cache
def _library() -> str:
    from plotly.offline import get_plotlyjs

    found: str = get_plotlyjs()
    return found
