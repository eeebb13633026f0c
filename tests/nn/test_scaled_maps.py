from __future__ import annotations

import torch

from autopeft.method import Call, Context
from autopeft.nn import LowRankPair, ScaledPairs
from autopeft.spec import Site

SITE = Site("encoder", 0, "q", "linear", 6, 4)


def pairs() -> ScaledPairs[LowRankPair]:
    pair = LowRankPair(6, 4, 2)
    torch.nn.init.normal_(pair.B)
    return ScaledPairs({SITE.key: pair}, 3.0)


def test_the_scale_gives_way_to_a_gate() -> None:
    made, x, y = pairs(), torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    own = x @ made[SITE].product().T
    torch.testing.assert_close(made.delta(SITE, x, y, Call(Context())), 3 * own)
    torch.testing.assert_close(made.delta(SITE, x, y, Call(Context(), gated=True)), own)


def test_merged_is_what_delta_adds() -> None:
    made, weight, bias = pairs(), torch.randn(4, 6), torch.randn(4)
    x = torch.randn(7, 6)
    merged, same = made.merged(SITE, weight, bias)
    assert same is bias
    expected = x @ weight.T + made.delta(SITE, x, x @ weight.T, Call(Context()))
    torch.testing.assert_close(x @ merged.T, expected)
    assert made.up_parameters() == [made[SITE].B]
