"""The command line: one module per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from autopeft.interruption import exit_code, sentence, terminable

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `autopeft.cli.app.main`), also where Ctrl-C or SIGTERM
    comes while the commands are still being imported, or when the command has just ended.

    Args:
        argv: the words of the command. `None` for those of this process, which ends when it has ended.
    """
    try:
        with terminable(last=argv is None):
            from autopeft.cli.app import main as run

            return run(argv)
    except KeyboardInterrupt:
        print(f"error: {sentence()}", file=sys.stderr)
        return exit_code()
