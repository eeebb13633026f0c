"""Whether dropout acts on a tensor, and at which rate."""

from __future__ import annotations

from torch import Tensor
from torch.testing import assert_close

__all__ = ["assert_dropped"]


def assert_dropped(found: Tensor, whole: Tensor, p: float) -> None:
    """`found` is `whole` with each entry zero with probability p, and the others divided by 1 − p.

    The share of zeros may be off by four standard deviations. Entries of `whole` are not zero.
    """
    zero = found.abs() < 1e-6
    assert_close(found[~zero], (whole.expand_as(found) / (1 - p))[~zero], atol=1e-5, rtol=1e-4)
    share, deviation = float(zero.double().mean()), (p * (1 - p) / zero.numel()) ** 0.5
    assert abs(share - p) < 4 * deviation, f"{share:.4f} of the entries are zero, where p is {p}"
