"""What the documents say of commands, functions and files is so."""

from __future__ import annotations

import posixpath
import re

import pytest
import typer.main
from generate.pages import pages
from support.documents import ROOT, text_of

import autopeft
from autopeft.cli.app import app

DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"),
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")),
)
GROUP = typer.main.get_command(app)
OPTIONS = {
    name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    for name, command in GROUP.commands.items()  # type: ignore[attr-defined]
}


def called(text: str) -> list[tuple[str, list[str]]]:
    """Commands of `autopeft` in code, with the options that follow each."""
    code = re.findall(r"^(?:\S*/)?autopeft ([^#\n]*)|`autopeft ([^`]+)`|&& \S+/autopeft ([^\n]*)", text, re.M)
    found = []
    for words in ("".join(parts).split() for parts in code):
        if words and words[0].islower():
            found.append((words[0], [w for w in words[1:] if re.match(r"--?[a-z]", w)]))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_their_options_exist(document: str) -> None:
    for command, options in called(text_of(document)):
        assert command in OPTIONS, command
        assert set(options) <= OPTIONS[command], (command, options)


def test_they_are_found_in_the_text() -> None:
    assert called("autopeft search --budget 1% -t x\n`autopeft show` && .venv/bin/autopeft runs --json") == [
        ("search", ["--budget", "-t"]),
        ("show", []),
        ("runs", ["--json"]),
    ]
    assert len(called(text_of("README.md"))) > 10


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_named_alone_exist(document: str) -> None:
    every = set().union(*OPTIONS.values())
    for option in re.findall(r"`(--[a-z-]+)", text_of(document)):
        assert option in every, option


@pytest.mark.parametrize("document", DOCUMENTS)
def test_functions_exist(document: str) -> None:
    names = set(re.findall(r"\bautopeft\.([a-z_]+)\(", text_of(document)))
    assert names <= set(autopeft.__all__)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """To a file, or to a page that the site makes of the code."""
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text_of(document)):
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(document), link))
        assert (ROOT / meant).exists() or meant.removeprefix("docs/") in pages(), link
