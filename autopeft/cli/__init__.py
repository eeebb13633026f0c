"""The command line: one module per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `autopeft.cli.app.main`), also where Ctrl-C comes while
    the commands are still being imported."""
    try:
        from autopeft.cli.app import main as run
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
    return run(argv)
