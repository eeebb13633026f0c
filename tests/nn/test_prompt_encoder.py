from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.nn import PromptEncoder, PromptRows


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_sizes_are_what_they_hold(length: int, hidden: int, mid: int, width: int) -> None:
    for module, expected in (
        (PromptEncoder(length, hidden, mid), PromptEncoder.size(length, hidden, mid)),
        (PromptRows(length, width), PromptRows.size(length, width)),
        (PromptRows(length, width, mid=mid), PromptRows.size(length, width, mid=mid)),
    ):
        assert sum(p.numel() for p in module.parameters()) == expected


def test_blocks_of_rows_are_one_mlp() -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(3, 5, 7)
    blocks = [PromptRows(3, width, mid=7) for width in (4, 6)]
    whole = torch.nn.Linear(7, 10)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([b.up.weight for b in blocks if b.up is not None]))
        whole.bias.copy_(torch.cat([b.up.bias for b in blocks if b.up is not None]))
    expected = whole(torch.tanh(encoder.down(encoder.embedding)))
    torch.testing.assert_close(torch.cat([b(encoder) for b in blocks], dim=1), expected)


def test_deploy_keeps_the_rows_bit_for_bit() -> None:
    encoder, rows = PromptEncoder(3, 5, 7), PromptRows(3, 4, mid=7)
    before = rows(encoder).detach()
    rows.deploy(encoder)
    assert torch.equal(rows(), before)
    assert [n for n, _ in rows.named_parameters()] == ["rows"]
