"""The attention function that is asked for some queries alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.injection.attention import attending
from autopeft.injection.frames import READ

attend = attending(ALL_ATTENTION_FUNCTIONS["sdpa"], fused=True)


@pytest.mark.parametrize("earlier", [0, 2])
def test_queries_see_all_keys_of_earlier_tokens(earlier: int) -> None:
    """Without a mask, which of the keys come before a query is counted from the last of them."""
    torch.manual_seed(0)
    module, queries = nn.Module(), 3
    module.is_causal = True  # type: ignore[assignment]
    query = torch.randn(2, 2, queries, 4)
    key, value = torch.randn(2, 2, 2, earlier + queries, 4)
    mask = torch.ones(1, 1, queries, earlier + queries, dtype=torch.bool).tril(earlier)
    whole, _ = attend(module, query, key, value, mask)
    read = torch.tensor([[0, 2], [2, 1]])
    found, _ = attend(module, query, key, value, None, **{READ: read})
    for row, positions in enumerate(read.tolist()):
        assert torch.allclose(found[row, positions], whole[row, positions], atol=1e-6)
        (other,) = {0, 1, 2} - set(positions)
        assert not found[row, other].any()
