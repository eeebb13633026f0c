from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs
from torch import Tensor, nn

from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

VARIANTS = ("series", "input", "parallel")


@given(toy_specs, st.sampled_from(VARIANTS), st.integers(1, 9), st.booleans())
def test_count_is_what_it_holds(spec: BackboneSpec, variant: str, bottleneck: int, bias: bool) -> None:
    config = {"variant": variant, "bottleneck": bottleneck, "bias": bias, "sites": ("k", "up", "down")}
    deployed, trained, held, held_trained = counted("linear_adapter", spec, **config)
    assert deployed == trained == held == held_trained


def test_defaults_are_those_of_the_authors_code() -> None:
    """AGI-Edgerunners/LLM-Adapters, peft/src/peft/tuners/bottleneck.py."""
    method = configured("linear_adapter")
    c = method.config
    assert (c.bottleneck, c.activation, c.scale, c.dropout, c.bias) == (256, "tanh", 1.0, 0.0, False)
    assert (c.variant, method.traits.default_sites) == ("series", ("down",))


def test_weights_start_from_a_normal_of_a_fiftieth() -> None:
    torch.manual_seed(0)
    module, _ = build("linear_adapter", toy_spec(layers=1, hidden=200, ffn=300), bottleneck=100, bias=True)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert 0.019 < float(parameter.detach().std()) < 0.021


class Wrapped(nn.Module):
    """A linear map with an adapter, as the paper's figures have it."""

    def __init__(self, inner: nn.Module, variant: str, adapter: Any, scale: float) -> None:
        super().__init__()
        self.inner, self.variant, self.scale = inner, variant, scale
        self.down, self.up = adapter.down.weight.detach().clone(), adapter.up.weight.detach().clone()

    def added(self, u: Tensor) -> Tensor:
        return self.scale * torch.tanh(u @ self.down.T) @ self.up.T

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == "input":
            return self.inner(x + self.added(x))  # type: ignore[no-any-return]
        z: Tensor = self.inner(x)
        return z + self.added(z if self.variant == "series" else x)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_published_equations_in_a_llama(variant: str, scale: float) -> None:
    options = {"variant": variant, "bottleneck": 5, "scale": scale, "sites": ["up", "down"]}
    model, reference = tiny_model("llama"), tiny_model("llama")
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": [{"linear_adapter": options}]}]}), seed=0)
    randomise(hybrid.root, std=0.3)
    module: Any = hybrid.modules["linear_adapter"]
    for site in hybrid.graph.sites():
        mlp: Any = reference.get_submodule(f"model.layers.{site.layer}.mlp")
        name = f"{site.name}_proj"
        setattr(mlp, name, Wrapped(getattr(mlp, name), variant, module[site], scale))
    inputs = tiny_inputs("llama", pad=2)
    found, expected = model(**inputs).logits, reference(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, tiny_model("llama")(**inputs).logits, atol=1e-2)


def test_a_gate_takes_the_place_of_the_scale_and_dropout_acts_on_what_is_fed() -> None:
    module, sites = build(
        "linear_adapter", toy_spec(), bottleneck=400, scale=4.0, dropout=0.25, sites=("q",), activation="relu"
    )
    x = torch.ones(4000, 6)
    site = next(s for s in sites if s.name == "q")
    module.eval()
    one = module.delta(site, x, x, CALL)
    torch.testing.assert_close(module.delta(site, x, x, GATED) * 4, one)
    with torch.no_grad():
        module[site].down.weight.fill_(1 / 6)  # the mean of what is fed
        module[site].up.weight.fill_(1 / 400)
    fed = module.train().delta(site, x, x, GATED)[:, 0]
    assert abs(float(fed.mean()) - 1) < 0.02  # kept values are divided by 0.75
    assert abs(float(fed.std()) - (0.25 / 0.75 / 6) ** 0.5) < 0.02
