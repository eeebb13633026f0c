"""Trained hybrids in use: scored, asked for predictions, exported to a folder of their own.

`autopeft.export` is this package and also, called, the public function `autopeft.export(...)`.
"""

from __future__ import annotations

from autopeft.arguments.room import let_call

__all__: list[str] = []

let_call(__name__, "autopeft.export.api:export")
