from __future__ import annotations

from typing import Any

import pytest
import torch
from support.fingerprint import changed, fingerprint
from support.tiny import tiny_model
from torch import Tensor

from autopeft.errors import UsageError
from autopeft.hybrid import activated_neurons, attach, neuron_overlap
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
