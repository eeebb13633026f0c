from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import toy_spec

from autopeft.errors import MethodError
from autopeft.nn import LowRankKronecker, kronecker_sum, require_blocks

few = st.integers(1, 4)


@settings(deadline=None)
@given(few, few, few, few, few)
def test_the_sum_is_that_of_explicit_products(n: int, a: int, b: int, c: int, d: int) -> None:
    left, right = torch.randn(n, a, b), torch.randn(n, c, d)
    expected = sum(torch.kron(left[i], right[i]) for i in range(n))
    torch.testing.assert_close(kronecker_sum(left, right), expected)


def test_blocks_are_low_rank() -> None:
    n, rank = 4, 2
    brick = LowRankKronecker(n, 400, 80, rank)
    assert sum(p.numel() for p in brick.parameters()) == LowRankKronecker.size(400, 80, rank) == 2 * 480
    rules = torch.randn(n, n, n)
    blocks = [brick.left[i] @ brick.right[i] for i in range(n)]
    expected = sum(torch.kron(rules[i], blocks[i]) for i in range(n))
    torch.testing.assert_close(brick.matrix(rules), expected)
    assert brick.matrix(rules).shape == (400, 80)


def test_widths_that_do_not_divide_are_refused_with_those_that_do() -> None:
    sites = [s for s in toy_spec(hidden=12, kv=8).sites if s.name in ("q", "v")]
    require_blocks("method", 4, sites)
    with pytest.raises(MethodError, match=r"encoder\.0\.v is 12 wide.*may be 1, 2, 4\."):
        require_blocks("method", 3, sites)
