"""The command line: one module per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from autopeft.interruption import exit_code, sentence, terminable

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `autopeft.cli.app.main`), also where Ctrl-C or SIGTERM
    comes while the commands are still being imported."""
    with terminable():
        try:
            from autopeft.cli.app import main as run
        except KeyboardInterrupt:
            print(f"error: {sentence()}", file=sys.stderr)
            return exit_code()
        return run(argv)
