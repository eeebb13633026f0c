from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import build, configured, counted, toy_spec, toy_specs
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from autopeft.backbones import spec_of
from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"name": "s", "model": [{"intrinsic_said": config}]})


def attached(name: str = "bert", **config: Any) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, recipe(**{"dimension": 100, **config}), seed=0)
    randomise(hybrid.root, std=0.3)
    return model, hybrid


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.base_model.named_parameters()}


@given(toy_specs, st.integers(2, 300))
def test_exactly_the_dimension_is_trained(spec: BackboneSpec, dimension: int) -> None:
    assume(dimension > len(spec.tensors))
    assert counted("intrinsic_said", spec, dimension=dimension) == (dimension,) * 4


def test_it_is_one_vector_and_a_scale_for_each_tensor() -> None:
    spec = spec_of(BertConfig())
    module, _ = build("intrinsic_said", spec, dimension=20_000)
    held = {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert held == {"z": (20_000 - 199,), "scales": (199,)}
    assert not module.z.any()
    assert torch.equal(module.scales, torch.ones(199))
    assert set(module.state_dict()) == set(held)  # nothing of the projections


def test_a_dimension_that_the_scales_use_up_is_refused() -> None:
    spec = toy_spec(layers=1)
    count = len(spec.tensors)
    with pytest.raises(MethodError, match=f"raise it above {count}"):
        configured("intrinsic_said", dimension=count).parameter_count((), spec)
    assert configured("intrinsic_said", dimension=count + 1).parameter_count((), spec).deployed == count + 1
    few = configured("intrinsic_said", dimension=count, tensors=["up"])
    assert few.parameter_count((), spec).trained == count


def test_every_tensor_of_the_backbone_is_moved_and_all_by_one_z() -> None:
    model, hybrid = attached()
    before = weights(model)
    module: Any = hybrid.modules["intrinsic_said"]
    with torch.no_grad():
        module.scales.fill_(1.0)
        module.z[1:] = 0  # one entry of z reaches all of them
    merged = weights(hybrid.merge())
    norms = [float((merged[n] - w).norm() / module.z[0].detach().abs()) for n, w in before.items()]
    assert len(norms) == 55
    assert min(norms) > 0.4
    assert sum(norms) / len(norms) == pytest.approx(1, abs=0.1)


def test_each_tensor_has_a_projection_of_its_own() -> None:
    module, _ = build("intrinsic_said", toy_spec(), dimension=90)
    torch.nn.init.normal_(module.z)
    zero = torch.zeros(6, 6)
    square = [
        t for t, s in zip(module.weight_targets(), toy_spec().tensors, strict=True) if s.shape == (6, 6)
    ]
    changes = [module.weight(t, zero, zero).flatten() for t in square]
    assert len(changes) == 5  # q and o of two layers, and the pooler
    assert len({tuple(c.tolist()) for c in changes}) == 5


def test_a_scale_moves_its_own_tensor_alone_and_in_proportion() -> None:
    module, _ = build("intrinsic_said", toy_spec(), dimension=90)
    randomise(module)
    originals = {
        t: torch.randn(s.shape) for t, s in zip(module.weight_targets(), toy_spec().tensors, strict=True)
    }

    def changes() -> list[Tensor]:
        return [module.weight(t, w, w).detach() - w for t, w in originals.items()]

    before = changes()
    with torch.no_grad():
        module.scales[7] *= -2
    for i, (old, new) in enumerate(zip(before, changes(), strict=True)):
        torch.testing.assert_close(new, old * (-2 if i == 7 else 1), atol=1e-6, rtol=1e-5)


def test_weights_come_back_from_the_seed_and_the_saved_numbers_alone(tmp_path: Path) -> None:
    _, hybrid = attached(dimension=80, seed=4)
    hybrid.save(tmp_path)
    saved = {
        k: v for k, v in load_file(tmp_path / "weights.safetensors").items() if not k.startswith("head.")
    }
    assert {k: v.numel() for k, v in saved.items()} == {
        "model.intrinsic_said.z": 25, "model.intrinsic_said.scales": 55
    }  # fmt: skip
    expected = weights(hybrid.merge())
    fresh = tiny_model("bert")
    again = weights(load(fresh, tmp_path).merge())
    assert all(torch.equal(again[n], w) for n, w in expected.items())
    other = attach(tiny_model("bert"), recipe(dimension=80, seed=5), seed=0)
    other.root.load_state_dict(hybrid.root.state_dict())
    differing = weights(other.merge())
    assert not any(torch.equal(differing[n], w) for n, w in expected.items())


def test_gradients_equal_those_through_dense_projections() -> None:
    model, hybrid = attached(dimension=70, tensors=["*.0.*"])
    module: Any = hybrid.modules["intrinsic_said"]
    inputs = tiny_inputs("bert", pad=2)
    logits(model, inputs).sin().sum().backward()
    grads = {n: p.grad.clone() for n, p in module.named_parameters()}
    z, scales = module.z.detach(), module.scales.detach()
    base = model.base_model
    hybrid.detach()
    names = list(module.projections)
    for name in names:
        parameter = base.get_parameter(name)
        delta = scales[module.number[name]] * module.projections[name](z, torch.ones(()))
        parameter.data += delta.view_as(parameter)
        parameter.requires_grad_().grad = None
    logits(model, inputs).sin().sum().backward()
    for_z = torch.zeros_like(z)
    for name in names:
        projection, grad = module.projections[name], base.get_parameter(name).grad.flatten()
        number = module.number[name]
        columns = [projection(e, torch.ones(())) for e in torch.eye(len(z))]
        matrix = torch.stack(columns, dim=1)
        for_z += scales[number] * matrix.T @ grad
        torch.testing.assert_close(grads["scales"][number], grad @ matrix @ z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grads["z"], for_z, atol=1e-4, rtol=1e-4)


def test_the_reference_gradient_shrinks_z_by_the_padded_size_of_each_tensor() -> None:
    grads = []
    for reference in (False, True):
        model, hybrid = attached(
            dimension=50, tensors=["encoder.layer.1.intermediate.dense.weight"], reference_grad=reference
        )
        logits(model, tiny_inputs("bert")).sin().sum().backward()
        grads.append({n: p.grad for n, p in hybrid.modules["intrinsic_said"].named_parameters()})
    torch.testing.assert_close(grads[1]["z"] * 2048, grads[0]["z"])
    assert torch.equal(grads[1]["scales"], grads[0]["scales"])


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (None, 55),
        (["q"], 6),
        (["q", "ffn_norm"], 12),
        (["encoder.layer.0.*"], 16),
        (["*.query.bias", "pooler.*", "q"], 8),
    ],
)
def test_tensors_are_chosen_by_site_or_by_pattern(tensors: Any, expected: int) -> None:
    module, _ = build("intrinsic_said", spec_of(tiny_config("bert")), dimension=100, tensors=tensors)
    assert len(module.weight_targets()) == len(module.scales) == expected
    assert len({t.key for t in module.weight_targets()}) == expected


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("dwon", "Did you mean 'down'"),
        ("encoder.layer.7.*", "patterns of names"),
        ("q", "Did you mean 'qkv'"),
    ],
)
def test_a_name_that_fits_nothing_gets_near_matches(wrong: str, words: str) -> None:
    spec = spec_of(tiny_config("gpt2" if wrong == "q" else "bert"))
    with pytest.raises(MethodError, match=words):
        configured("intrinsic_said", dimension=100, tensors=["up", wrong]).parameter_count((), spec)


def test_every_owner_of_a_tied_tensor_computes_with_the_same_change() -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = BertForMaskedLM(config).eval()
    hybrid = attach(model, recipe(dimension=100), seed=0)
    randomise(hybrid.root)
    owners = (model.bert.embeddings.word_embeddings, model.cls.predictions.decoder)
    seen: list[Tensor] = []
    for owner in owners:
        owner.register_forward_pre_hook(lambda m, a: seen.append(m.weight))
    model(input_ids=torch.tensor([[3, 4]]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], owners[0].weight, atol=1e-3)


def test_keeps_the_dtype_of_the_backbone() -> None:
    model = tiny_model("bert").bfloat16()
    hybrid = attach(model, recipe(dimension=100), seed=0)
    randomise(hybrid.root)
    logits(model, tiny_inputs("bert")).float().sum().backward()
    module: Any = hybrid.modules["intrinsic_said"]
    assert module.z.dtype == module.z.grad.dtype == torch.float32
    assert module.z.grad.abs().min() > 0


def test_it_learns() -> None:
    model = tiny_model("bert")
    hybrid = attach(model, recipe(dimension=256), seed=0)
    inputs, labels = tiny_inputs("bert", batch=8), torch.arange(8) % 2
    optimizer = torch.optim.Adam(hybrid.root.parameters(), lr=3e-2)  # the task head stays as it is
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(model, inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 0.5 < losses[0]
