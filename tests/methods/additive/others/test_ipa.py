"""IPA beside the formula, and beside a processor of logits that asks a second model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.language import save_decoder
from support.policy import SIZES, added, attached, recipe
from support.saved_model import save_backbone
from support.tiny import VOCABULARY, randomise, tiny_inputs, tiny_model
from support.toy import size
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
)

from autopeft.counting import count
from autopeft.errors import CompositionError, MethodError
from autopeft.hybrid import attach, load
from autopeft.hybrid.store import WEIGHTS
from autopeft.method import FEATURE
from autopeft.recipe import Recipe
from autopeft.resources import file_bytes
from autopeft.tasks.kinds import Generation, get_kind
from autopeft.tasks.kinds.generation import generate
from autopeft.training.forward import Forward

NAMES = ("llama", "gpt2")
PROMPTS = [[5, 9, 11], [7, 8, 12, 30, 22, 41, 3], [44], [6, 6, 17, 23, 24]]


# The formula
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_logits_are_the_bases_and_those_of_the_policy(name: str, side: str) -> None:
    model, hybrid, module = attached(name, alpha=0.7)
    ids = tiny_inputs(name, length=9)["input_ids"]
    mask = torch.ones_like(ids)
    if side != "none":
        mask[0, slice(0, 3) if side == "left" else slice(6, 9)] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        found = model(**inputs).logits
        wanted = added(module, ids, mask)
        hybrid.detach()
        plain = model(**inputs).logits
    real = mask.bool()
    torch.testing.assert_close(found[real], (plain + wanted)[real], atol=1e-4, rtol=1e-4)
    assert float(wanted.abs().max()) > 0.1
    torch.testing.assert_close(found.softmax(-1).sum(-1), torch.ones(found.shape[:2]))


def test_alpha_zero_is_the_base_exactly() -> None:
    model, hybrid, _ = attached(alpha=0.0)
    inputs = tiny_inputs("llama", pad=2)
    with torch.no_grad():
        found = model(**inputs).logits
        hybrid.detach()
        assert torch.equal(found, model(**inputs).logits)


def test_the_base_sees_no_control_and_gets_no_gradient() -> None:
    model, _, module = attached()
    read: list[Tensor] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))
    inputs = tiny_inputs("llama")
    with hook:
        model(**inputs).logits.square().mean().backward()
    assert len(read) == 1
    assert torch.equal(read[0], inputs["input_ids"])
    own = {id(p) for p in module.parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert float(parameter.grad.abs().max()) > 0, key
    assert bool(module.policy.controls.grad[0].any())
    assert not bool(module.policy.controls.grad[1:].any())


def test_each_row_has_the_control_of_its_bin() -> None:
    model, _, module = attached()
    kind, bins = get_kind("causal_lm"), torch.tensor([3, 1, 0])
    ids = tiny_inputs("llama", batch=3)["input_ids"]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), FEATURE + module.policy.key: bins}
    with torch.no_grad():
        found = Forward(model, kind=kind)(batch)
        module.silent = True
        plain = Forward(model, kind=kind)(batch)
    torch.testing.assert_close(found, plain + added(module, ids, bins=bins), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(added(module, ids, bins=bins), added(module, ids), atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_others_are_not_for_the_policy(name: str) -> None:
    model, _, module = attached(name, {"prompt_tuning": {"length": 3}})
    inputs = tiny_inputs(name, pad=2)
    with torch.no_grad():
        found = model(**inputs).logits
        module.silent = True
        plain = model(**inputs).logits
    wanted = added(module, inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close((found - plain)[:, :7], wanted[:, :7], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kept", [1, 3])
def test_the_last_logits_alone_are_those_of_all(kept: int) -> None:
    model, _, _ = attached()
    inputs = tiny_inputs("llama", pad=2)
    with torch.no_grad():
        whole = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=kept).logits, whole[:, -kept:])


def test_a_backbone_in_16_bits() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    hybrid = attach(model, recipe(), seed=0)
    hybrid.root.float()
    assert model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.bfloat16


# Generation
# ------------------------------------------------------------------------------------------------------------


class Adds(LogitsProcessor):  # type: ignore[misc]
    """The second model's logits, as users of transformers add them."""

    def __init__(self, module: Any, width: int) -> None:
        self.module, self.width = module, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.ones_like(input_ids)
        mask[:, : self.width] = (input_ids[:, : self.width] != 0).long()
        return scores + added(self.module, input_ids, mask)[:, -1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_it_writes_what_a_logits_processor_writes(name: str, cached: bool, beams: int) -> None:
    model, hybrid, module = attached(name)
    width = max(map(len, PROMPTS))
    rows = torch.tensor([[0] * (width - len(row)) + row for row in PROMPTS])
    given = {"input_ids": rows, "attention_mask": (rows != 0).long()}
    how: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    how |= {"use_cache": cached, "eos_token_id": None, "renormalize_logits": beams > 1}
    found = model.generate(**given, **how)
    hybrid.detach()
    adds = LogitsProcessorList([Adds(module, width)])
    wanted = model.generate(**given, **how, logits_processor=adds)
    assert found.tolist() == wanted.tolist()
    assert found.tolist() != model.generate(**given, **how).tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alike", [[], [2, 40, 31, 22, 13, 4, 15, 26, 37]])
def test_batches_are_written_as_rows_alone_are(name: str, alike: list[int]) -> None:
    """What prompts begin with is not read once, as the policy would not read it."""
    model, _, _ = attached(name)
    prompts = [[*alike, *row] for row in PROMPTS]
    with torch.no_grad():
        found = generate(model, prompts, Generation(), most=6, ends=(), pad=0)
        for prompt, row in zip(prompts, found, strict=True):
            tokens = list(prompt)
            for _ in range(6):
                tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            assert tokens[len(prompt) :] == row


def test_a_cache_without_the_policys_past_is_refused() -> None:
    model, hybrid, _ = attached()
    hybrid.detach()
    ids = torch.tensor([[5, 6, 7]])
    out = model(ids, use_cache=True)
    past = {"past_key_values": out.past_key_values}
    attach(model, recipe(), seed=0)
    with pytest.raises(CompositionError, match=r"does not hold what ipa made of it; .* use_cache=False"):
        model(torch.tensor([[8]]), **past, use_cache=True)


# Counts, files, a start from another model
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"kv_heads": None, "ffn": 20, "bins": 3}, {"layers": 1, "width": 24}]
)
def test_all_of_it_is_counted(options: dict[str, Any]) -> None:
    model = tiny_model("gpt2")
    hybrid = attach(model, recipe(**options), seed=0)
    found = count(hybrid.recipe, hybrid.spec)
    assert found.deployed == found.trained == size(hybrid.modules["ipa"]) == hybrid.counts().deployed


def test_it_is_saved_and_comes_back(tmp_path: Path) -> None:
    decoder: Any = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama"))
    hybrid = attach(decoder, recipe(), seed=0)
    randomise(hybrid.root, std=0.3)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = decoder(ids).logits
        hybrid.save(tmp_path / "saved")
        fresh: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
        load(fresh, tmp_path / "saved")
        torch.testing.assert_close(fresh(ids).logits, expected)


def test_a_seed_draws_it_and_moves_nothing() -> None:
    def values(seed: int | None) -> list[Tensor]:
        return [
            p.detach() for p in attach(tiny_model("llama"), recipe(), seed=seed).modules["ipa"].parameters()
        ]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = values(None)
        before = torch.get_rng_state()
        found = values(3)
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_size_of_its_file_is_known_before(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with attach(model, recipe(), seed=0) as hybrid:
        predicted = file_bytes(hybrid.graph, hybrid.head())
        hybrid.save(tmp_path)
    assert predicted == pytest.approx((tmp_path / WEIGHTS).stat().st_size, rel=0.02)


def small(**changes: Any) -> LlamaForCausalLM:
    options = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    torch.manual_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(**{**options, "rms_norm_eps": 1e-5, "pad_token_id": None, **changes})
    ).eval()


def test_a_stored_policy_that_began_as_a_language_model_is_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lm = small()
    with attach(tiny_model("llama"), recipe(ffn=48), seed=0) as hybrid:
        module: Any = hybrid.modules["ipa"]
        module.policy.take(lm)
        hybrid.save("first")
    started = Recipe.from_dict(
        {"name": "r", "inputs": {"lm": "first"}, "model": [{"ipa": {**SIZES, "ffn": 48}, "from": "lm"}]}
    )
    module = attach(tiny_model("llama"), started, seed=3).modules["ipa"]
    for key, value in lm.model.state_dict().items():
        assert torch.equal(module.policy.decoder.state_dict()[key], value), key


def test_controls_are_drawn_as_the_embeddings_are_spread() -> None:
    module = attached(ffn=48, bins=400)[2]
    lm = small()
    with torch.no_grad():
        lm.model.embed_tokens.weight.mul_(torch.linspace(1, 40, 16)).add_(torch.arange(16.0))
    module.policy.take(lm)
    table, controls = module.policy.table, module.policy.controls
    torch.testing.assert_close(controls.mean(0), table.mean(0), atol=0.25, rtol=0.1)
    torch.testing.assert_close(controls.std(0), table.std(0), atol=0.0, rtol=0.2)


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 1}, {"tie_word_embeddings": False}, {"vocab_size": 9}, {"hidden_size": 32}],
)
def test_a_model_of_another_shape_is_no_start(changes: dict[str, Any]) -> None:
    module = attached(ffn=48)[2]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(MethodError, match="is no decoder of the shape of ipa"):
        module.policy.take(small(**changes))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_gpt2_is_a_base_and_no_start() -> None:
    module = attached("gpt2", ffn=48)[2]
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2)
    with pytest.raises(MethodError, match="GPT2LMHeadModel is no decoder of the shape of ipa"):
        module.policy.take(GPT2LMHeadModel(config))


# Refused
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_head_has_no_words(name: str, tmp_path: Path) -> None:
    if name == "bert":
        model: Any = AutoModelForSequenceClassification.from_pretrained(save_backbone(tmp_path / "bert"))
    else:
        model = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(
        CompositionError, match=r"ipa adds to the logits of each token, .* \(AutoModelForCausalLM"
    ):
        attach(model, recipe())


def test_logits_that_are_capped_afterwards_are_refused() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=50, head_dim=8, num_key_value_heads=1, **sizes)
    with pytest.raises(
        CompositionError, match=r"alters what its projection yields \(final_logit_softcapping\)"
    ):
        attach(Gemma2ForCausalLM(config), recipe())


def test_an_encoder_decoder_reads_another_text() -> None:
    with pytest.raises(CompositionError, match="has an encoder that reads another"):
        attach(tiny_model("t5"), recipe())


@pytest.mark.parametrize(
    "changes",
    [
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2), "attention_mask": None},
        {"attention_mask": torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()},
    ],
    ids=["several texts in a row", "a mask of pairs"],
)
def test_packed_rows_are_refused(changes: dict[str, Any]) -> None:
    model, _, _ = attached()
    with pytest.raises(CompositionError, match="no ids of it that are one text to a row"):
        model(**{**tiny_inputs("llama"), **changes})


def test_embeddings_in_place_of_ids_are_refused() -> None:
    model, _, _ = attached()
    with pytest.raises(CompositionError, match="pass input_ids"):
        model(inputs_embeds=torch.randn(1, 4, 32))


def test_positions_that_are_picked_are_refused() -> None:
    model, _, _ = attached()
    with pytest.raises(CompositionError, match="of which tokens these logits are"):
        model(**tiny_inputs("llama"), logits_to_keep=torch.tensor([1, 3]))


@pytest.mark.parametrize("options", [{"width": 15}, {"heads": 3, "width": 18, "kv_heads": 2}, {"width": 6}])
def test_widths_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"even number|divide"):
        recipe(**options)
