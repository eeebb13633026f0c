"""Adapters in a post-norm layer, against the equations written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny import randomise, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.hybrid import attach
from autopeft.recipe import Recipe

LayerNorm = Callable[[Tensor], Tensor]


def _attention(layer: Any, x: Tensor) -> Tensor:
    """The attention sub-layer's output, before the residual."""
    return layer.attention.output.dense(layer.attention.self(x)[0])  # type: ignore[no-any-return]


def _ffn(layer: Any, h: Tensor) -> Tensor:
    return layer.output.dense(layer.intermediate(h))  # type: ignore[no-any-return]


def _pfeiffer(layer: Any, module: Any, sites: dict[str, Any], x: Tensor) -> Tensor:
    norm: LayerNorm = layer.output.LayerNorm
    h = layer.attention.output.LayerNorm(_attention(layer, x) + x)
    z = _ffn(layer, h)
    return norm(z + module[sites["ffn"]](norm(z + h)) + h)


def _houlsby(layer: Any, module: Any, sites: dict[str, Any], x: Tensor) -> Tensor:
    def norm(name: str, bare: Any, value: Tensor) -> Tensor:
        deltas = [module.norms[f"encoder.layer.0.{name}.LayerNorm.{p}"] for p in ("weight", "bias")]
        gain, shift = bare.weight + deltas[0], bare.bias + deltas[1]
        return torch.nn.functional.layer_norm(value, value.shape[-1:], gain, shift, bare.eps)

    a = _attention(layer, x)
    h = norm("attention.output", layer.attention.output.LayerNorm, a + module[sites["attention"]](a) + x)
    z = _ffn(layer, h)
    return norm("output", layer.output.LayerNorm, z + module[sites["ffn"]](z) + h)


def _parallel(layer: Any, module: Any, sites: dict[str, Any], x: Tensor) -> Tensor:
    h = layer.attention.output.LayerNorm(_attention(layer, x) + 2 * module[sites["attention"]](x) + x)
    out: Tensor = layer.output.LayerNorm(_ffn(layer, h) + 2 * module[sites["ffn"]](h) + h)
    return out


@pytest.mark.parametrize(
    ("item", "by_hand"),
    [
        ({"serial_adapter": {"variant": "pfeiffer", "bottleneck": 5}}, _pfeiffer),
        ({"serial_adapter": {"variant": "houlsby", "bottleneck": 5}}, _houlsby),
        ({"parallel_adapter": {"bottleneck": 5, "scale": 2, "sites": ["attention", "ffn"]}}, _parallel),
    ],
)
def test_one_layer_computes_the_papers_equations(item: Any, by_hand: Callable[..., Tensor]) -> None:
    model: PreTrainedModel = tiny_model("bert")
    bare = tiny_model("bert")
    recipe = Recipe.from_dict({"autopeft": 2, "name": "a", "layers": [{"at": [0], "attach": [item]}]})
    hybrid = attach(model, recipe)
    randomise(hybrid.root)
    entry = next(iter(hybrid.graph.entries.values()))
    module = next(iter(hybrid.modules.values()))
    ids = torch.tensor([[4, 8, 15, 16, 23]])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    layer = bare.get_submodule("bert.encoder.layer.0")
    expected = by_hand(layer, module, {s.name: s for s in entry.sites}, states[0])
    torch.testing.assert_close(states[1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(states[1], layer(states[0])[0], atol=1e-2)
