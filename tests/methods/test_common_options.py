"""Options that several methods have do the same in each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import randomise
from support.toy import CALL, build, toy_spec

from autopeft.method import get_method, method_names


def _with(field: str) -> list[str]:
    return [
        name
        for name in method_names()
        if field in get_method(name).Config.model_fields
        and "hook" in get_method(name).traits.ways
        and "prompt" not in get_method(name).traits.ways  # rows lie in a batch, which this has none of
        and "calibration" not in get_method(name).traits.needs  # nothing is there before data have settled it
    ]


def _made(name: str, **config: Any) -> tuple[Any, Any]:
    config |= {
        "kadaptation": {"phm_dim": 2, "scale": 1.0},
        "serial_adapter": {"variant": "houlsby"},
        "linear_adapter": {"variant": "parallel"},  # `series` is fed Y, which is zero
        "lora_dropout": {"expected": False},  # else p scales what is evaluated
    }.get(name, {})
    module, sites = build(name, toy_spec(hidden=8, ffn=8, kv=8), **config)
    randomise(module, std=0.5)
    return module, sites[0]


X, Y = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(200, 8)


@pytest.mark.parametrize("name", _with("dropout"))
def test_dropout_acts_while_training_and_only_then(name: str) -> None:
    module, site = _made(name, dropout=0.5)
    plain, _ = _made(name, dropout=0.0)
    plain.load_state_dict(module.state_dict())
    deltas = {}
    for training in (True, False):
        for made, which in ((module, "dropped"), (plain, "plain")):
            made.train(training)
            torch.manual_seed(0)
            deltas[training, which] = made.delta(site, X, Y, CALL).detach()
    torch.testing.assert_close(deltas[False, "dropped"], deltas[False, "plain"])
    torch.testing.assert_close(deltas[True, "plain"], deltas[False, "plain"])
    assert not torch.allclose(deltas[True, "dropped"], deltas[False, "dropped"], atol=1e-2)


@pytest.mark.parametrize("name", _with("alpha"))
def test_alpha_scales_the_change(name: str) -> None:
    """s = α by the rank of the factors, whatever else the method does with them."""
    module, site = _made(name, rank=3, alpha=3.0)
    other, _ = _made(name, rank=3, alpha=12.0)
    other.load_state_dict(module.state_dict())
    first, second = (m.eval().delta(site, X, Y, CALL).detach() for m in (module, other))
    torch.testing.assert_close(4 * first, second, atol=1e-4, rtol=1e-4)
    assert bool(first.abs().max() > 1e-3)
