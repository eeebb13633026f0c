from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.nn import Bottleneck


@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_size_is_what_it_holds(width: int, bottleneck: int, bias: bool) -> None:
    module = Bottleneck(width, bottleneck, bias=bias)
    assert sum(p.numel() for p in module.parameters()) == Bottleneck.size(width, bottleneck, bias=bias)


def test_lora_init_is_zero_and_others_are_small() -> None:
    x = torch.randn(3, 64)
    assert torch.equal(Bottleneck(64, 32, init="lora")(x), torch.zeros(3, 64))
    houlsby = Bottleneck(64, 32, init="houlsby")
    assert houlsby.down.weight.abs().max() <= 2e-3
    assert houlsby.down.weight.std() > 5e-4
    bert = Bottleneck(512, 256, init="bert")
    assert bert.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not bert.up.bias.any()


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
