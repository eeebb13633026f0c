"""UniPELT starts as the authors' code does (morningmoni/UniPELT)."""

from __future__ import annotations

import torch
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.recipe import Recipe


def test_the_prefix_starts_as_small_as_the_authors() -> None:
    """`BertPreTrainedModel.init_weights` draws E (10 × 768), W₁ (512 × 768) and W₂ from N(0, 0.02²), with
    biases at zero. W₁·E then has the variance 768·0.02⁴, a deviation of 0.011, for which tanh is the identity
    to 0.01 %, and P = W₂·tanh(W₁·E) the variance 512·0.02²·768·0.02⁴ = 0.0050166². One draw is within 3 %:
    the ten rows of E alone move it by √(2 / 7,680) / 2 = 0.8 %.
    """
    spec = spec_of(BertConfig())
    entry = build_graph(Recipe.named("unipelt"), spec).entries["prefix_tuning"]
    torch.manual_seed(0)
    module = entry.method.build(entry.sites, spec)
    module.deploy()
    rows = torch.cat([p.flatten() for p in module.parameters()]).detach()
    assert rows.numel() == 12 * 10 * 2 * 768
    expected = (512 * 768) ** 0.5 * 0.02**3
    assert 0.97 * expected < float(rows.std()) < 1.03 * expected
    assert 0.00486 < float(rows.std()) < 0.00518
    assert abs(float(rows.mean())) < 5e-5
