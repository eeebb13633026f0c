"""A module that owns one child for each site."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

from torch import nn

from autopeft.spec import Site

__all__ = ["PerSite"]

_M = TypeVar("_M", bound=nn.Module)


class PerSite(nn.Module, Generic[_M]):
    """Children by site; `self[site]` is the site's own. Saved keys start with `at.<site>`."""

    def __init__(self, children: dict[str, _M]) -> None:
        super().__init__()
        self.at = nn.ModuleDict(children)

    def __getitem__(self, site: Site) -> _M:
        return cast(_M, self.at[site.key])

    def children_by_site(self) -> list[_M]:
        """All children, in the order of their sites."""
        return [cast(_M, child) for child in self.at.values()]
