from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from autopeft.nn import ACTIVATIONS, Bottleneck


@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_size_is_what_it_holds(width: int, bottleneck: int, bias: bool) -> None:
    module = Bottleneck(width, bottleneck, bias=bias)
    assert sum(p.numel() for p in module.parameters()) == Bottleneck.size(width, bottleneck, bias=bias)


def test_lora_init_is_zero() -> None:
    assert torch.equal(Bottleneck(64, 32, init="lora")(torch.randn(3, 64)), torch.zeros(3, 64))


def test_quick_gelu_is_that_of_transformers() -> None:
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), ACT2FN["quick_gelu"](x))


def test_dropout_acts_behind_the_activation_only_while_training() -> None:
    torch.manual_seed(0)
    module = Bottleneck(8, 512, dropout=0.5)
    torch.nn.init.constant_(module.down.bias, 1.0)
    torch.nn.init.zeros_(module.down.weight)
    torch.nn.init.constant_(module.up.weight, 1 / 512)
    x = torch.zeros(1, 8)
    assert module.eval()(x)[0, 0].item() == pytest.approx(1.0, abs=1e-5)
    drawn = module.train()(x)[0, 0].item()
    assert drawn != pytest.approx(1.0, abs=1e-5)
    assert drawn == pytest.approx(1.0, abs=0.3)
