"""`autopeft chat`: talk with a trained language model."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from autopeft.cli.console import notify, say
from autopeft.cli.declared import Given, declared
from autopeft.cli.options import Run
from autopeft.errors import UsageError
from autopeft.export.arguments import ChatArguments
from autopeft.interruption import Terminated, forget

__all__ = ["chat"]

_LONGEST = 1 << 20  # letters of a line
_HELP = "/reset begins anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


@declared(ChatArguments)
def chat(run: Run, given: Given) -> None:
    """Talk with a trained language model: a line is a message, and its answer is shown as it is written.

    The tokenizer's chat template is used where there is one. Lines of a pipe are answered one by one.

    \b
      autopeft chat latest
      autopeft chat winner --system "Be brief." --temperature 0.7
      printf 'Hello\\nWho are you?\\n' | autopeft chat latest
    """
    from autopeft.assets import quiet_libraries
    from autopeft.export.chat import chat as begin

    quiet_libraries()
    talk = begin(run, notify=notify, **given)
    if sys.stdin.isatty():
        notify(_HELP)
    for line in _lines():
        if line == "/exit":
            break
        if line == "/reset":
            talk.reset()
            notify("What was said is forgotten.")
        elif line.startswith("/"):
            notify(f"There is no {line.split()[0]}. {_HELP}")
        elif line:
            try:
                talk.say(line, lambda piece: say(piece, end=""))
            except Terminated:
                raise
            except KeyboardInterrupt:
                notify("\n(stopped)")
                forget()
            except UsageError as error:
                notify(f"error: {error}")
            say()


def _lines() -> Iterator[str]:
    """What is typed or piped in, a line at a time, without white space around it."""
    while True:
        try:
            line = _typed() if sys.stdin.isatty() else _piped()
        except Terminated:
            raise
        except KeyboardInterrupt:
            notify(f"\n{_HELP}")
            forget()
            continue
        except EOFError:
            return
        yield line.strip()


def _typed() -> str:
    return input("> ").encode("utf-8", "replace").decode("utf-8")


def _piped() -> str:
    line = sys.stdin.buffer.readline(_LONGEST)
    if not line:
        raise EOFError
    return line.decode("utf-8", "replace")
