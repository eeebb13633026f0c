"""The command line: one module per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from autopeft.cli.app import main

__all__ = ["main"]
