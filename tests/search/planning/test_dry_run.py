from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search

from autopeft.search.api import plan
from autopeft.search.planning import dry_run
from autopeft.search.space.repair import Infeasible


def test_a_point_near_which_nothing_fits_is_passed_over_as_a_search_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    real, calls = dry_run.candidate, list[bool]()

    def every_second(*arguments: Any) -> Any:
        calls.append(len(calls) % 2 == 0)
        if calls[-1]:
            raise Infeasible("Nothing is near.")
        return real(*arguments)

    monkeypatch.setattr(dry_run, "candidate", every_second)
    assert plan(**small_search(tmp_path), samples=2).samples
    assert calls.count(True) >= 1
