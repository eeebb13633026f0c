from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import tiny_config
from support.toy import CALL, build, configured, counted, sites_of, toy_spec, toy_specs
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.spec import BackboneSpec


def test_defaults_are_those_of_the_authors_code() -> None:
    """XiangLi1999/PrefixTuning, gpt2/train_e2e.py: preseqlen, mid_dim, dropout of the prefix."""
    config = configured("prefix_tuning").config
    assert (config.length, config.reparameterization, config.dropout) == (10, 512, 0.0)


def test_the_mlp_starts_as_torch_starts_its_parts() -> None:
    """E from N(0, 1); W₁ and W₂ uniform in ±1/√in, of std 1/√(3·in); bare rows from N(0, 0.02)."""
    torch.manual_seed(0)
    module, _ = build("prefix_tuning", toy_spec(), length=200, reparameterization=300)
    (encoder,) = module.encoders.values()
    assert 0.95 < float(encoder.embedding.std()) < 1.05
    for linear in (encoder.down, *(rows.up for rows in module.children_by_site())):
        bound = linear.in_features**-0.5
        for parameter in (linear.weight, linear.bias):
            assert float(parameter.abs().max()) <= bound
        assert 0.9 < float(linear.weight.std()) / (bound / 3**0.5) < 1.1
    bare, _ = build("prefix_tuning", toy_spec(), length=200, reparameterization=None)
    rows = torch.cat([p.flatten() for p in bare.parameters()])
    assert 0.019 < float(rows.std()) < 0.021


@given(toy_specs, st.integers(1, 6), st.none() | st.integers(1, 7))
def test_counts_are_what_it_holds(spec: BackboneSpec, length: int, mid: int | None) -> None:
    deployed, trained, held, held_trained = counted(
        "prefix_tuning", spec, length=length, reparameterization=mid
    )
    assert (deployed, trained) == (held, held_trained)


@pytest.mark.parametrize(("length", "mid", "trained"), [(10, 512, 9_857_024), (16, 800, 15_391_520)])
def test_counts_of_the_papers(length: int, mid: int, trained: int) -> None:
    spec = spec_of(BertConfig())
    method = configured("prefix_tuning", length=length, reparameterization=mid)
    count = method.parameter_count(sites_of(method, spec), spec)
    assert (count.deployed, count.trained) == (2 * length * 768 * 12, trained)


def test_each_type_of_attention_has_its_own_mlp() -> None:
    spec = spec_of(tiny_config("t5"))
    module, sites = build("prefix_tuning", spec, length=2, reparameterization=5)
    assert set(module.encoders) == {"encoder-attention", "decoder-attention", "decoder-cross_attention"}
    deployed, trained, held, held_trained = counted("prefix_tuning", spec, length=2, reparameterization=5)
    assert (deployed, trained) == (held, held_trained)
    for site in sites:
        keys, values = module.key_value(site, torch.zeros(1, 1, 32), CALL)
        assert keys.shape == values.shape == (1, 2, site.kv_features)


def test_deploying_gives_the_same_keys_and_values() -> None:
    module, sites = build("prefix_tuning", toy_spec(), length=3, reparameterization=5)
    x = torch.zeros(2, 4, 6)
    before = [t for s in sites for t in module.key_value(s, x, CALL)]
    module.deploy()
    after = [t for s in sites for t in module.key_value(s, x, CALL)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    module.deploy()
    assert {n.split(".")[-1] for n, _ in module.named_parameters()} == {"rows"}


def test_dropout_only_while_training() -> None:
    module, sites = build("prefix_tuning", toy_spec(), length=8, dropout=0.5, reparameterization=None)
    x = torch.zeros(1, 1, 6)
    torch.manual_seed(0)
    assert torch.equal(module.eval().key_value(sites[0], x, CALL)[0], module.key_value(sites[0], x, CALL)[0])
    assert (module.train().key_value(sites[0], x, CALL)[0] == 0).any()
