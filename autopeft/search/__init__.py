"""The search: spaces, repair, the study, the Ray engine, the run folder.

`autopeft.search` is this room and also, called, the public function `autopeft.search(...)`: importing a
submodule binds the package's attribute to the module, whatever stood there before, so the module itself
answers the call.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.search.api import SearchResult

__all__: list[str] = []


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> SearchResult:
        """See `autopeft.search.api.search`."""
        from autopeft.search.api import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
