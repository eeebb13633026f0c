from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from support.fingerprint import changed, fingerprint
from support.tiny import tiny_model
from torch import Tensor
from torch.distributions import MultivariateNormal

from autopeft.errors import UsageError
from autopeft.hybrid import activated_neurons, attach, log_evidence, neuron_overlap
from autopeft.recipe import Recipe

NAMES = ("bert", "roberta", "gpt2", "llama", "t5", "bart")
TOKEN = 5


def prompts(model: Any, count: int = 2) -> Tensor:
    width = model.get_input_embeddings().weight.shape[1]
    return torch.randn(count, 4, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_overlaps_wholly_with_itself_and_others_either_way_alike(name: str) -> None:
    model = tiny_model(name)
    one, other = prompts(model)
    assert neuron_overlap(model, one, one, token=TOKEN) == pytest.approx(1.0)
    there, back = (neuron_overlap(model, *pair, token=TOKEN) for pair in ((one, other), (other, one)))
    assert there == pytest.approx(back)
    assert 0 < there < 1
    near = neuron_overlap(model, one, one + 0.01 * other, token=TOKEN)
    assert there < near <= 1


@pytest.mark.parametrize(
    ("name", "map_name", "position"),
    [
        ("bert", "intermediate.dense", 0),
        ("gpt2", "mlp.c_fc", -1),
        ("llama", "mlp.gate_proj", -1),
        ("t5", "decoder.*wi", -1),
    ],
)
def test_they_are_those_that_a_plain_forward_activates(name: str, map_name: str, position: int) -> None:
    """[prompt; <s>] as embeddings; with two stacks the encoder reads it, and the decoder <s>."""
    model = tiny_model(name).eval()
    base: Any = model.base_model
    (prompt,) = prompts(model, 1)
    embeddings = torch.cat([prompt, model.get_input_embeddings().weight[[TOKEN]]])[None]
    seen: list[Tensor] = []
    first, _, last = map_name.rpartition("*")
    for path, module in base.named_modules():
        if path.endswith(last) and path.startswith(first.rstrip(".*")):
            module.register_forward_hook(lambda m, a, out: seen.append(out[0, position] > 0))
    more = {"decoder_input_ids": torch.tensor([[TOKEN]])} if name == "t5" else {}
    with torch.no_grad():
        base(inputs_embeds=embeddings, **more)
    expected = torch.stack(seen)
    assert torch.equal(activated_neurons(tiny_model(name), prompt, token=TOKEN), expected)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = tiny_model(name).train()
    before = fingerprint(model)
    activated_neurons(model, prompts(model)[0], token=TOKEN)
    assert not changed(before, fingerprint(model))
    assert all(module.training for module in model.modules())


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_model("bert")
    with pytest.raises(UsageError, match=r"\(4, 9\)"):
        activated_neurons(model, torch.zeros(4, 9), token=TOKEN)
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(UsageError, match="token=ID"):
        activated_neurons(model, prompts(model)[0])
    with attach(model, Recipe.from_dict({})), pytest.raises(UsageError, match="attached already"):
        activated_neurons(model, prompts(model)[0], token=TOKEN)


@pytest.mark.parametrize(("n", "d"), [(30, 4), (12, 40)])
def test_the_log_evidence_is_the_largest_density_of_the_labels(n: int, d: int) -> None:
    """Against the normal distribution itself, with α and β found by a search."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(n, d, generator=draw, dtype=torch.double)
    labels = features[:, 0] + 0.5 * torch.randn(n, generator=draw, dtype=torch.double)

    def density(logs: Any) -> float:
        alpha, beta = np.exp(logs)
        covariance = torch.eye(n, dtype=torch.double) / beta + features @ features.T / alpha
        mean = torch.zeros(n, dtype=torch.double)
        return float(MultivariateNormal(mean, covariance).log_prob(labels)) / n

    best = minimize(lambda logs: -density(logs), [0.0, 0.0], method="Nelder-Mead")
    assert log_evidence(features, labels) == pytest.approx(-best.fun, abs=1e-4)


def test_classes_are_columns_and_telling_features_have_more_evidence() -> None:
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    columns = torch.nn.functional.one_hot(labels, 3).double()
    telling = torch.cat([columns, torch.randn(60, 5, generator=draw, dtype=torch.double)], dim=1)
    noise = torch.randn(60, 8, generator=draw, dtype=torch.double)
    assert log_evidence(telling, labels) > log_evidence(noise, labels)
    assert log_evidence(noise, labels) == pytest.approx(log_evidence(noise, columns))
    assert log_evidence(noise, 2 * labels) == pytest.approx(log_evidence(noise, labels)), "no row, no class"
    turned = noise @ torch.linalg.qr(noise[:8])[0]
    assert log_evidence(turned, labels) == pytest.approx(log_evidence(noise, labels))
