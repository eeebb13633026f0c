"""How far apart two answers of a model are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["symmetric_divergence"]


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """½·[KL(q‖p) + KL(p‖q)] with p = softmax(first) and q = softmax(second) over the last dimension, in fp32.

    Each KL is of its second argument alone: its first one, the target, has no gradient. So the gradient for
    `first` is ½·(p − q), and that for `second` ½·(q − p). Of one number, which is no distribution, it is 0.

    Args:
        first, second: finite logits (…, classes).

    Returns:
        One value for each distribution, (…).
    """
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    towards_q = F.kl_div(p, q.detach(), reduction="none", log_target=True)
    towards_p = F.kl_div(q, p.detach(), reduction="none", log_target=True)
    return 0.5 * (towards_q + towards_p).sum(-1)
