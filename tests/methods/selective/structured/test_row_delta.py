from __future__ import annotations

import pytest
import torch
from autopeft.methods.selective.structured.far import RowDelta
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.errors import DataError

IN, OUT, ROWS = 7, 11, [1, 4, 9]


def filled(*, bias: bool = True, rows: list[int] = ROWS) -> RowDelta:
    torch.manual_seed(0)
    delta = RowDelta(IN, OUT, len(rows), bias=bias)
    delta.hold(torch.tensor(rows), torch.randn(len(rows), IN), torch.randn(len(rows)) if bias else None)
    return delta


def test_it_starts_at_zero_with_the_first_rows() -> None:
    delta = RowDelta(IN, OUT, 3, bias=True)
    assert delta.index.tolist() == [0, 1, 2]
    assert not delta(torch.randn(2, 5, IN)).any()
    assert RowDelta(IN, OUT, 3, bias=False).bias is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [ROWS, list(range(OUT))])
def test_it_is_the_change_of_a_map(bias: bool, rows: list[int]) -> None:
    delta, x = filled(bias=bias, rows=rows), torch.randn(2, 5, IN)
    weight, shift = torch.randn(OUT, IN), torch.randn(OUT) if bias else None
    changed, shifted = delta.added_to(weight, shift)
    others = [i for i in range(OUT) if i not in rows]
    assert torch.equal(changed[others], weight[others])
    assert torch.equal(changed[rows], weight[rows] + delta.values)
    found = nn.functional.linear(x, weight, shift) + delta(x)
    torch.testing.assert_close(found, nn.functional.linear(x, changed, shifted))
    if shift is None:
        assert shifted is None
    else:
        assert shifted is not None
        assert torch.equal(shifted[others], shift[others])


def test_rows_are_kept_in_order() -> None:
    delta, values = RowDelta(IN, OUT, 2, bias=True), torch.randn(2, IN)
    delta.hold(torch.tensor([9, 1]), values, torch.tensor([0.9, 0.1]))
    assert delta.index.tolist() == [1, 9]
    assert torch.equal(delta.values, values[[1, 0]])
    assert delta.bias is not None
    assert delta.bias.tolist() == pytest.approx([0.1, 0.9])


class Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that is computed; another view of one that was there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        there = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for made in found if isinstance(found, tuple) else (found,):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in there:
                self.seen.add(tuple(made.shape))
        return found


def test_no_gradient_of_another_row_is_computed() -> None:
    delta, x = filled(), torch.randn(2, 5, IN, requires_grad=True)
    frozen = nn.Linear(IN, OUT).requires_grad_(False)
    dense = nn.Linear(IN, OUT)
    with Shapes() as shapes:
        dense(x).sum().backward()
    assert shapes.seen & {(OUT, IN), (IN, OUT)}, "the test sees dense gradients"
    with Shapes() as shapes:
        (frozen(x) + delta(x)).pow(2).sum().backward()
    assert (len(ROWS), IN) in shapes.seen
    assert not shapes.seen & {(OUT, IN), (IN, OUT)}
    assert frozen.weight.grad is None


@pytest.mark.parametrize("rows", [[1, 4, 11], [-1, 4, 9], [4, 1, 9], [1, 1, 9]])
def test_rows_that_are_none_are_found_out(rows: list[int]) -> None:
    delta = filled()
    delta.check()
    delta.index.copy_(torch.tensor(rows))
    with pytest.raises(DataError, match="damaged"):
        delta.check()
