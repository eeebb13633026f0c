from __future__ import annotations

import pytest
import torch
from autopeft.methods.additive.adapters.coda import soft_top_k
from torch import Tensor


def weights(scores: Tensor, k: int, iterations: int = 5000, **options: float) -> Tensor:
    given = {"temperature": 0.1, **options}
    return soft_top_k(scores, torch.full((len(scores),), k), iterations=iterations, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [2, 5, 11])
def test_converged_weights_are_shares_that_sum_to_k(k: int) -> None:
    scores = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    found = weights(scores, k)
    torch.testing.assert_close(found.sum(-1), torch.full((4,), float(k)), atol=1e-3, rtol=0)
    assert bool(((found >= 0) & (found <= 1 + 1e-6)).all())
    rising = found.gather(1, scores.argsort(-1))
    assert bool((rising.diff(dim=-1) >= -1e-6).all()), "the larger the score, the larger the share"


@pytest.mark.parametrize("start", [None, 4.0])
def test_one_of_them_is_the_softmax(start: float | None) -> None:
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    found = soft_top_k(scores, torch.ones(3), temperature=0.5, iterations=500, start=start)
    torch.testing.assert_close(found, (scores / 0.5).softmax(-1), atol=1e-5, rtol=1e-4)


def test_a_low_temperature_gives_the_hard_choice() -> None:
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(2))
    found = weights(scores, 4, iterations=20000, temperature=5e-3, start=4.0, decay=0.999)
    hard = torch.zeros_like(scores).scatter(1, scores.topk(4).indices, 1.0)
    torch.testing.assert_close(found, hard, atol=1e-3, rtol=0)


def test_all_there_is_has_the_weight_one() -> None:
    scores = torch.randn(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = soft_top_k(scores, torch.tensor([3, 5]), temperature=0.03, iterations=20, start=4.0, mask=mask)
    assert torch.equal(found, mask.float())


def test_what_is_not_there_has_no_part() -> None:
    scores = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    alone = soft_top_k(scores[:, :4], torch.tensor([2, 2]), temperature=0.03, iterations=20, start=4.0)
    mask = torch.tensor([1, 1, 1, 1, 0, 0]).expand(2, -1)
    padded = soft_top_k(scores, torch.tensor([2, 2]), temperature=0.03, iterations=20, start=4.0, mask=mask)
    torch.testing.assert_close(padded[:, :4], alone)
    assert not padded[:, 4:].any()


def test_scores_get_a_gradient_also_where_rows_are_masked() -> None:
    scores = torch.randn(2, 6, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    found = soft_top_k(scores, torch.tensor([2, 3]), temperature=0.03, iterations=20, start=4.0, mask=mask)
    (gradient,) = torch.autograd.grad(found.square().sum(), scores)
    assert bool(torch.isfinite(gradient).all())
    assert gradient.any(-1).all()
    assert not gradient[0, 4:].any()
