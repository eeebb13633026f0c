from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import ARCHITECTURES, logits, tiny_config, tiny_inputs, tiny_model
from support.toy import CALL, build, configured, counted, sites_of, toy_spec, toy_specs
from transformers import RobertaConfig

from autopeft.backbones import spec_of
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec


def attached(model: Any, options: dict[str, Any], at: Any = "all", method: str = "p_tuning_v2") -> Hybrid:
    recipe = Recipe.from_dict({"layers": [{"at": at, "attach": [{method: options}]}]})
    return attach(model, recipe, seed=0)


def test_defaults_are_those_of_the_authors_code() -> None:
    """THUDM/P-tuning-v2, arguments.py: pre_seq_len, prefix_projection, hidden_dropout_prob; BERT's init."""
    config = configured("p_tuning_v2").config
    assert (config.length, config.reparameterization, config.dropout, config.std) == (4, None, 0.1, 0.02)


@given(toy_specs, st.integers(1, 6), st.none() | st.integers(1, 7))
def test_counts_are_what_it_holds(spec: BackboneSpec, length: int, mid: int | None) -> None:
    deployed, trained, held, held_trained = counted(
        "p_tuning_v2", spec, length=length, reparameterization=mid
    )
    assert (deployed, trained) == (held, held_trained)
    if mid is None:
        assert deployed == trained


@pytest.mark.parametrize("length", [8, 128])
def test_two_vectors_for_each_row_and_layer(length: int) -> None:
    """2·L·l·d, on the RoBERTa-large of the authors' runs."""
    spec = spec_of(RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16))
    method = configured("p_tuning_v2", length=length)
    count = method.parameter_count(sites_of(method, spec), spec)
    assert count.deployed == count.trained == 2 * 24 * length * 1024


def spread(tensors: list[torch.Tensor]) -> float:
    return float(torch.cat([t.flatten() for t in tensors]).std())


@pytest.mark.parametrize(("std", "low", "high"), [(0.02, 0.019, 0.021), (1.0, 0.95, 1.05)])
def test_everything_starts_from_one_normal(std: float, low: float, high: float) -> None:
    torch.manual_seed(0)
    bare, _ = build("p_tuning_v2", toy_spec(), length=128, std=std)
    rows = [p.detach() for p in bare.parameters()]
    assert low < spread(rows) < high
    assert abs(float(torch.cat([r.flatten() for r in rows]).mean())) < 0.05 * std
    made, _ = build("p_tuning_v2", toy_spec(), length=128, std=std, reparameterization=128)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert low < spread([parameter.detach()]) < high, name


def test_dropout_is_drawn_for_each_row_of_the_batch_and_only_while_training() -> None:
    module, sites = build("p_tuning_v2", toy_spec(), length=64)
    x = torch.zeros(50, 1, 6)
    torch.manual_seed(0)
    keys, values = module.train().key_value(sites[0], x, CALL)
    gone = torch.cat([keys, values], dim=-1) == 0
    assert 0.08 < float(gone.float().mean()) < 0.12
    assert not torch.equal(gone[0], gone[1])
    kept = module.eval().key_value(sites[0], x, CALL)[0]
    assert torch.equal(kept, module.key_value(sites[0], x, CALL)[0])
    torch.testing.assert_close(keys[keys != 0], (kept / 0.9).expand_as(keys)[keys != 0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_prefix_tuning_without_the_mlp(name: str) -> None:
    """Also the lengths of all hidden states are those of the bare model: nothing is put into the sequence."""
    models = [tiny_model(name) for _ in range(2)]
    ours = attached(models[0], {"length": 3})
    prefix = attached(models[1], {"length": 3, "reparameterization": None}, method="prefix_tuning")
    weights = {k: v * 20 for k, v in ours.modules["p_tuning_v2"].state_dict().items()}
    for hybrid in (ours, prefix):
        next(iter(hybrid.modules.values())).load_state_dict(weights)
    inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
    found, expected = (logits(model, inputs) for model in models)
    assert torch.equal(found, expected)
    bare = logits(tiny_model(name), inputs)
    assert found.shape == bare.shape
    assert not torch.allclose(found, bare, atol=1e-3)


def test_layers_below_the_first_prefix_do_not_change() -> None:
    inputs = tiny_inputs("bert", pad=2)
    model = tiny_model("bert")
    before = model(**inputs, output_hidden_states=True).hidden_states
    hybrid = attached(model, {"length": 3, "std": 1.0}, at=[1])
    after = model(**inputs, output_hidden_states=True).hidden_states
    same = [torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert same == [True, True, False, False]
    assert [a.shape for a in after] == [b.shape for b in before]
    assert {s.layer for s in hybrid.graph.sites()} == {1}


def test_a_backbone_that_does_not_tell_keys_and_values_apart_is_refused_by_name() -> None:
    spec = spec_of(tiny_config("bert"))
    blind = type(spec.sites[0])("encoder", 0, "attention", "region", 32, 32)
    with pytest.raises(Exception, match="p_tuning_v2 needs the width of keys and values"):
        configured("p_tuning_v2").parameter_count([blind], spec)
