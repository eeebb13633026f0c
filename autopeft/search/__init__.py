"""The search: spaces, repair, the study, the Ray engine, the run folder.

`autopeft.search` is this package and also, called, the public function `autopeft.search(...)`.
"""

from __future__ import annotations

from autopeft.arguments.room import let_call

__all__: list[str] = []

let_call(__name__, "autopeft.search.api:search")
