from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from autopeft.nn import Router


def router(experts: int = 4, **options: object) -> Router:
    made = Router(6, experts, **options)  # type: ignore[arg-type]
    torch.nn.init.normal_(made.weight)
    return made


U = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


def test_soft_weights_are_a_softmax_in_fp32() -> None:
    made = router()
    p = made(U.bfloat16())
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(-1), torch.ones(3, 5))
    torch.testing.assert_close(made(U), torch.softmax(U @ made.weight.T, -1))
    assert Router.size(6, 4) == made.weight.numel()


@pytest.mark.parametrize("renormalize", [True, False])
def test_top_k_keeps_exactly_the_largest(renormalize: bool) -> None:
    soft = router()
    hard = Router(6, 4, top_k=2, renormalize=renormalize)
    hard.load_state_dict(soft.state_dict())
    p, kept = soft(U), hard(U)
    assert ((kept > 0).sum(-1) == 2).all()
    assert torch.equal(kept.topk(2, -1).indices, p.topk(2, -1).indices)
    if renormalize:
        torch.testing.assert_close(kept.sum(-1), torch.ones(3, 5))
        torch.testing.assert_close(
            kept.amax(-1) / kept.sum(-1), p.topk(2, -1).values[..., 0] / p.topk(2, -1).values.sum(-1)
        )
    else:
        torch.testing.assert_close(kept[kept > 0], p[kept > 0])


def by_hand(p: Tensor, k: int) -> Tensor:
    """E·Σ f·P over rows (n, E)."""
    kept = torch.zeros_like(p).scatter(-1, p.topk(k, -1).indices, 1.0)
    return p.shape[-1] * sum(kept[:, e].mean() * p[:, e].mean() for e in range(p.shape[-1]))


def test_the_loss_is_mixtrals_and_k_where_all_is_uniform() -> None:
    made = router(top_k=2, balanced=True)
    p = torch.softmax(U @ made.weight.T, -1).flatten(0, 1)
    made(U)
    loss = made.take_loss()
    assert loss is not None
    torch.testing.assert_close(loss, by_hand(p, 2))
    assert made.take_loss() is None, "it is taken once"
    even = Router(4, 4, top_k=1, balanced=True)
    with torch.no_grad():
        even.weight.copy_(torch.eye(4) * 1e-4)
    even(torch.eye(4))  # each row keeps another expert, and the weights are almost equal
    uniform = even.take_loss()
    assert uniform is not None
    torch.testing.assert_close(uniform, torch.tensor(1.0), atol=1e-3, rtol=0)


def test_padding_counts_in_no_share() -> None:
    made, mask = router(top_k=1, balanced=True), torch.ones(3, 5)
    mask[:, 3:] = 0
    made(U, mask)
    masked = made.take_loss()
    made(U[:, :3])
    torch.testing.assert_close(masked, made.take_loss())


def test_no_loss_without_training_or_balance() -> None:
    quiet = router(top_k=1)
    quiet(U)
    assert quiet.take_loss() is None
    evaluated = router(top_k=1, balanced=True).eval()
    evaluated(U)
    assert evaluated.take_loss() is None


def test_recomputation_in_backward_leaves_no_second_loss() -> None:
    made = router(top_k=2, balanced=True)
    out = checkpoint(lambda u: made(u).square().sum(), U.clone().requires_grad_(), use_reentrant=False)
    loss = made.take_loss()
    assert loss is not None
    (out + loss).backward()
    assert made.take_loss() is None
    assert made.weight.grad is not None
    there = made.weight.grad.clone()
    made.weight.grad = None
    plain = made(U).square().sum()
    again = made.take_loss()
    assert again is not None
    (plain + again).backward()
    torch.testing.assert_close(there, made.weight.grad)


def test_a_router_that_has_just_run_can_be_copied_and_pickled() -> None:
    made = router(top_k=2, balanced=True)
    made(U)
    copied, read = copy.deepcopy(made), pickle.loads(pickle.dumps(made))
    for other in (copied, read):
        assert other.take_loss() is None
        torch.testing.assert_close(other(U), made(U))


def test_autocast_leaves_the_weights_in_fp32() -> None:
    made = router()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = made(U)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p, made(U), atol=0, rtol=0)


def test_an_orthogonal_router_has_orthonormal_rows() -> None:
    weight = Router(60, 4, init="orthogonal").weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=1e-5, rtol=0)


def test_noise_multiplies_the_logits_and_no_gradient_goes_through_it() -> None:
    made = router(noise=0.5)
    plain = U @ made.weight.T
    torch.manual_seed(3)
    p = made(U)
    torch.manual_seed(3)
    noise = 0.5 * torch.randn_like(plain)
    expected = torch.softmax(plain * (1 + noise), -1)
    torch.testing.assert_close(p, expected)
    (p[..., 0].sum()).backward()
    leaf = (plain.detach() * (1 + noise)).requires_grad_()
    torch.softmax(leaf, -1)[..., 0].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(made.weight.grad, torch.einsum("abe,abw->ew", leaf.grad, U))
    made.eval()
    torch.testing.assert_close(made(U), torch.softmax(plain, -1))


def test_dropout_leaves_logits_out() -> None:
    made = router(dropout=0.5)
    plain = U @ made.weight.T
    torch.manual_seed(3)
    p = made(U)
    torch.manual_seed(3)
    torch.testing.assert_close(p, torch.softmax(torch.nn.functional.dropout(plain, 0.5), -1))
    made.eval()
    torch.testing.assert_close(made(U), torch.softmax(plain, -1))
