"""The second device (`support/second_device/acc_device.py`), in a process of its own.

Torch's autograd makes its queues of devices at the first backward, and a device that is declared later has
none. So these tests run where `import torch` declares the device: `tests/test_second_device.py` starts such a
process, and elsewhere they are not collected. By hand:

    PYTHONPATH=tests/support/second_device pytest tests/second_device
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

collect_ignore_glob = [] if "acc_device" in sys.modules else ["test_*.py"]


@pytest.fixture(autouse=True)
def acc() -> Iterator[torch.device]:
    """The device. Attention is in its plain form on both: torch has fused kernels for its own alone."""
    import acc_device  # declared by its entry point

    with sdpa_kernel(SDPBackend.MATH):
        yield acc_device.DEVICE
