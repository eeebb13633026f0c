from __future__ import annotations

import pytest

from autopeft.graph import Memo


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
def test_it_never_holds_more_than_its_limit_and_keeps_the_newest(limit: int) -> None:
    memo: Memo[int, str] = Memo(limit)
    for i in range(50):
        assert memo.keep(i, str(i)) == str(i)
        assert len(memo) <= limit
        assert memo.get(i) == str(i)
        assert list(memo) == list(range(i - len(memo) + 1, i + 1))


def test_what_fits_is_kept() -> None:
    memo: Memo[str, int] = Memo(3)
    for i, key in enumerate("abc"):
        memo.keep(key, i)
    assert memo == {"a": 0, "b": 1, "c": 2}
    assert memo.get("d") is None
