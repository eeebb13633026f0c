"""Blocks of code in documents: which there are, and what is left out of running them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

__all__ = ["Block", "blocks", "commands"]

_BLOCK = re.compile(
    r"(?:<!-- run by: (?P<elsewhere>\S+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
_SHELL = ("bash", "console", "sh")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        title: the file that the reader is asked to save it as.
        elsewhere: the test that runs it, where the page cannot be run on one machine.
    """

    language: str
    text: str
    title: str | None = None
    elsewhere: str | None = None

    @property
    def shell(self) -> bool:
        return self.language in _SHELL


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [Block(m["language"], m["text"], m["title"], m["elsewhere"]) for m in _BLOCK.finditer(text)]


def commands(block: Block) -> list[list[str]]:
    """The commands of `autopeft` in a block, as words. Of a line that installs first, what comes after it;
    without the file that the output goes to."""
    found = []
    for line in block.text.splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words and words[0].rpartition("/")[2] == "autopeft":
                end = words.index(">") if ">" in words else len(words)
                found.append(words[1:end])
    return found
