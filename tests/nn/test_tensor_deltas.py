from __future__ import annotations

import torch

from autopeft.nn import TensorDeltas
from autopeft.spec import TensorSpec

TENSORS = (TensorSpec("x.0.bias", (4,), "bias"), TensorSpec("x.1.bias", (3,), "bias"))


def test_starts_as_the_identity_and_adds() -> None:
    deltas = TensorDeltas(TENSORS)
    bias = torch.randn(4)
    assert torch.equal(deltas.apply_to("x.0.bias", bias), bias)
    torch.nn.init.constant_(deltas["x.0.bias"], 2.0)
    assert torch.equal(deltas.apply_to("x.0.bias", bias), bias + 2)
    assert torch.equal(deltas.apply_to("x.1.bias", torch.zeros(3)), torch.zeros(3))


def test_keeps_the_dtype_of_the_backbone() -> None:
    assert (
        TensorDeltas(TENSORS).apply_to("x.1.bias", torch.zeros(3, dtype=torch.bfloat16)).dtype
        == torch.bfloat16
    )


def test_survives_a_state_dict() -> None:
    source, target = TensorDeltas(TENSORS), TensorDeltas(TENSORS)
    torch.nn.init.normal_(source["x.1.bias"])
    target.load_state_dict(source.state_dict())
    assert torch.equal(target["x.1.bias"], source["x.1.bias"])
