from __future__ import annotations

import pytest
import torch
from support.training import tiny_bert
from torch import nn
from transformers import BartConfig, BartForSequenceClassification

from autopeft.devices import generators_kept
from autopeft.training.contexts import evaluation_mode, learning, training_mode


def mixed_flags(model: nn.Module) -> dict[str, bool]:
    """Flags that no single call of `train` or `eval` would give back."""
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    return {name: module.training for name, module in model.named_modules()}


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("dropout", [True, False])
def test_flags_come_back_one_by_one_also_after_an_error(dropout: bool) -> None:
    model = tiny_bert()
    before = mixed_flags(model)
    with pytest.raises(RuntimeError, match="stop"), training_mode(model, (), dropout=dropout):
        raise RuntimeError("stop")
    assert flags(model) == before
    with evaluation_mode(model):
        assert not any(flags(model).values())
        assert not torch.is_grad_enabled()
    assert flags(model) == before
    assert torch.is_grad_enabled()


def test_without_dropout_only_the_modules_are_random() -> None:
    model = tiny_bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    module = nn.Dropout(0.5)
    ids = torch.full((2, 6), 9)
    with training_mode(model, [module], dropout=False):
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert bool((module(torch.ones(1000)) == 0).any())
    with training_mode(model, [module], dropout=True):
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_gradient_checkpointing_stays_on_without_dropout() -> None:
    """BART's layers read float rates under their own flag: alone, it would bring dropout back."""
    torch.manual_seed(0)
    names = ("dropout", "activation_dropout", "attention_dropout", "encoder_layerdrop")
    rates = dict.fromkeys(names, 0.5)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"vocab_size": 40, "d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 32}
    config = BartConfig(**sizes, **layers, **heads, **rates, pad_token_id=0, eos_token_id=2)
    model = BartForSequenceClassification(config)
    ids = torch.full((2, 6), 9)
    ids[:, -1] = 2
    plain = model.eval()(input_ids=ids).logits
    model.gradient_checkpointing_enable()
    calls = 0

    def counted(function, *args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return function(*args, **kwargs)

    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in checkpointed:
        layer._gradient_checkpointing_func = counted
    with training_mode(model, (), dropout=False):
        assert torch.allclose(model(input_ids=ids).logits, plain, atol=1e-6)
    assert calls == 4
    assert {layer.dropout for layer in checkpointed if hasattr(layer, "dropout")} == {0.5}


def test_seeded_repeats_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with generators_kept(torch.device("cpu"), seed=4):
        first = torch.rand(3)
    with generators_kept(torch.device("cpu"), seed=4):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)


def test_kept_generators_are_put_back_those_of_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    of_gpu = [torch.tensor([7])]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: of_gpu[0])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: of_gpu.append(state))
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with generators_kept(torch.device("cuda")):
        torch.manual_seed(0)
    assert torch.equal(torch.rand(3), expected)
    assert of_gpu[1:] == of_gpu[:1]


def test_only_what_is_wanted_learns_until_the_end() -> None:
    parameters = [nn.Parameter(torch.zeros(1), requires_grad=flag) for flag in (True, False, True)]

    def inside() -> None:
        assert [p.requires_grad for p in parameters] == [True, True, False]
        with learning([*parameters, *parameters], parameters[2:]):
            assert [p.requires_grad for p in parameters] == [False, False, True]
        assert [p.requires_grad for p in parameters] == [True, True, False]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), learning(parameters, parameters[:2]):
        inside()
    assert [p.requires_grad for p in parameters] == [True, False, True]
