from __future__ import annotations

import pytest
import torch
from autopeft.methods.additive.soft_prompts.selective_prompt import StackedMaps
from support.toy import size


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [None, 2])
def test_places_that_are_kept_map_as_before(n: int | None, shared: bool) -> None:
    torch.manual_seed(0)
    maps = StackedMaps(4, 6, 8, n, shared=shared)
    assert size(maps) == StackedMaps.size(4, 6, 8, n, shared=shared)
    x = torch.randn(3, 6)
    before = [maps(i, x) for i in range(4)]
    assert len({tuple(y.flatten().tolist()) for y in before}) == 4
    maps.keep(torch.tensor([1, 3]))
    assert size(maps) == StackedMaps.size(2, 6, 8, n, shared=shared)
    assert torch.equal(maps(0, x), before[1])
    assert torch.equal(maps(1, x), before[3])
    assert all(p.requires_grad for p in maps.parameters())


def test_the_weight_of_a_factored_map_is_a_sum_of_kronecker_products() -> None:
    maps = StackedMaps(2, 4, 6, 2, shared=False)
    assert maps.rules is not None
    x = torch.randn(3, 4)
    weight = sum(torch.kron(a, b) for a, b in zip(maps.rules[1], maps.weight[1], strict=True))
    torch.testing.assert_close(maps(1, x), x @ weight + maps.bias[1])
