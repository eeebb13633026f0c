"""Means over the real positions of a sequence: their rounding, and what they cannot be taken of."""

from __future__ import annotations

import pytest
import torch

from autopeft.composition.positions import mean_over_positions
from autopeft.errors import CompositionError
from autopeft.method import Call, Context
from autopeft.spec import Site

SITE = Site("decoder", 0, "q", "linear", 4, 4)
SOURCE = Site("decoder", 0, "cross_k", "linear", 4, 4)
X = torch.randn(2, 3, 4)


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float16, 2048), (torch.bfloat16, 263)])
@pytest.mark.parametrize("masked", [True, False])
def test_the_mean_of_a_long_text_in_16_bits_is_that_of_32(
    dtype: torch.dtype, tokens: int, masked: bool
) -> None:
    """In fp16 the sum is beyond what it holds; bf16 has no number 263."""
    x = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(0)).add(40).to(dtype)
    mask = torch.ones(2, tokens, dtype=torch.long) if masked else None
    found = mean_over_positions(x, SITE, Call(Context(mask=mask)), "A route")
    assert found.dtype == dtype
    assert torch.equal(found, x.double().mean(1, keepdim=True).to(dtype))


def test_a_mask_of_another_form_is_refused_where_padding_is_left_out() -> None:
    call = Call(Context(other_mask="(2, 1, 3, 3)"))
    with pytest.raises(CompositionError, match=r"A gate at decoder.0.q is told .* got \(2, 1, 3, 3\)"):
        mean_over_positions(X, SITE, call, "A gate")
    torch.testing.assert_close(
        mean_over_positions(X, SITE, call, "A gate", masked=False), X.mean(1, keepdim=True)
    )
    mean_over_positions(X, SOURCE, call, "A gate")  # which reads another sequence
    with pytest.raises(CompositionError, match="but got a dict; pass the 2-D mask"):
        mean_over_positions(X, SOURCE, Call(Context(other_source_mask="a dict")), "A gate")


@pytest.mark.parametrize("masked", [True, False])
def test_several_texts_in_a_row_have_no_mean(masked: bool) -> None:
    with pytest.raises(CompositionError, match="give each text a row of its own"):
        mean_over_positions(X, SITE, Call(Context(again=torch.tensor(True))), "A gate", masked=masked)
    mean_over_positions(X, SITE, Call(Context(again=torch.tensor(False))), "A gate", masked=masked)
