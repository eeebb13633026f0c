"""IPA beside the formula, beside a processor of logits that asks a second model, and on a toy reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import save_decoder, word_tokenizer, write_chats
from support.saved_model import save_backbone
from support.tiny import VOCABULARY, randomise, tiny_inputs, tiny_model
from support.toy import size
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
)

from autopeft.counting import count
from autopeft.errors import CompositionError, MethodError, TaskError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.hybrid.loss_step import Step
from autopeft.method import FEATURE, Sample
from autopeft.recipe import Recipe
from autopeft.tasks import load_task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.kinds import Generation, get_kind
from autopeft.tasks.kinds.generation import generate
from autopeft.training import TrainingPlan, train
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient

SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1}
NAMES = ("llama", "gpt2")
PROMPTS = [[5, 9, 11], [7, 8, 12, 30, 22, 41, 3], [44], [6, 6, 17, 23, 24]]
CPU = torch.device("cpu")


def recipe(*others: Any, rate: float = 0.02, **options: Any) -> Recipe:
    training = {"learning_rate": rate, "warmup": 0.0}
    return Recipe.from_dict(
        {"name": "r", "model": [{"ipa": {**SIZES, **options}}, *others], "training": training}
    )


def attached(name: str = "llama", *others: Any, **options: Any) -> tuple[Any, Hybrid, Any]:
    model = tiny_model(name)
    hybrid = attach(model, recipe(*others, **options), seed=0)
    randomise(hybrid.root, std=0.3)
    return model, hybrid, hybrid.modules["ipa"]


def policy_of(module: Any) -> LlamaForCausalLM:
    """The same policy as a language model of transformers."""
    config = module.policy.decoder.config
    found = LlamaForCausalLM(config)
    found.model.load_state_dict(module.policy.decoder.state_dict())
    found.lm_head.weight = found.model.embed_tokens.weight
    return found.eval()


def added(module: Any, ids: Tensor, mask: Tensor | None = None, bins: Tensor | None = None) -> Tensor:
    """α·z_φ (rows, tokens, words) behind the control of each row, by transformers' own forward."""
    lm = policy_of(module)
    bins = torch.zeros(len(ids), dtype=torch.long) if bins is None else bins
    before = module.policy.controls[bins][:, None]
    embeds = torch.cat([before, lm.model.embed_tokens(ids)], dim=1)
    whole = torch.ones_like(ids) if mask is None else mask
    whole = F.pad(whole, (1, 0), value=1)
    places = (whole.cumsum(1) - 1).clamp(min=0)
    out = lm(inputs_embeds=embeds, attention_mask=whole, position_ids=places).logits
    return module.config.alpha * out[:, 1:]


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


# Terms of the loss
# ------------------------------------------------------------------------------------------------------------


def words(folder: Path) -> EncodedTask:
    return encode(load_task(str(write_chats(folder / "chats.jsonl")), metric="rouge_l"), word_tokenizer(), 48)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedTask:
    return words(tmp_path_factory.mktemp("chats"))


@pytest.fixture
def decoder(tmp_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama"))


def _step_gradients(model: Any, hybrid: Hybrid, data: EncodedTask, rows: int) -> tuple[float, list[Tensor]]:
    kind = get_kind("causal_lm")
    gradient = Gradient(Forward(model, kind=kind), data.task.loss(), micro_rows=rows, device=CPU)
    hybrid.root.zero_grad()
    loss = gradient.accumulate(data.train.collate(range(5)), list(hybrid.modules.values()), [])
    return loss, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in hybrid.root.parameters()]


def test_kl_and_entropy_are_those_of_the_learnt_tokens(decoder: Any, data: EncodedTask) -> None:
    hybrid = attach(decoder, recipe(kl_coef=0.3, entropy_coef=0.2), seed=0)
    randomise(hybrid.root, std=0.3)
    found, _ = _step_gradients(decoder, hybrid, data, 5)
    batch = data.train.collate(range(5))
    inputs, labels = {k: batch[k] for k in ("input_ids", "attention_mask")}, batch["labels"]
    with torch.no_grad():
        learnt = labels[:, 1:] != -100
        p = decoder(**inputs).logits[:, :-1][learnt].log_softmax(-1)
        hybrid.detach()
        q = decoder(**inputs).logits[:, :-1][learnt].log_softmax(-1)
        kl = F.kl_div(q, p, reduction="batchmean", log_target=True)
        entropy = torch.distributions.Categorical(logits=p).entropy().mean()
        nll = F.nll_loss(p, labels[:, 1:][learnt])
    assert found == pytest.approx(float(nll + 0.3 * kl - 0.2 * entropy), rel=1e-4)
    assert float(kl) > 0.01


def test_they_are_exact_over_parts_of_a_batch(decoder: Any, data: EncodedTask) -> None:
    hybrid = attach(decoder, recipe(kl_coef=0.3, entropy_coef=0.2), seed=0)
    randomise(hybrid.root, std=0.3)
    whole, expected = _step_gradients(decoder, hybrid, data, 5)
    parts, found = _step_gradients(decoder, hybrid, data, 2)
    assert parts == pytest.approx(whole, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_terms_of_all_tokens_are_those_of_the_learnt_ones(decoder: Any, data: EncodedTask) -> None:
    """Where another trainer makes the logits of every token."""
    hybrid = attach(decoder, recipe(kl_coef=0.3, entropy_coef=0.2), seed=0)
    module: Any = hybrid.modules["ipa"]
    batch, kind = data.train.collate(range(5)), get_kind("causal_lm")
    terms = []
    for forward in (
        Forward(decoder, kind=kind),
        lambda b: decoder(b["input_ids"], b["attention_mask"]).logits,
    ):
        step = Step(
            decoder, batch, forward(batch), forward=lambda b, a: b, total=data.task.loss().total, divisor=7
        )
        terms.append(module.loss_terms(step))
        assert module.loss_terms(step) is None, "what was kept is gone"
    torch.testing.assert_close(terms[0], terms[1], atol=1e-5, rtol=1e-4)


def test_without_coefficients_nothing_is_kept(decoder: Any, data: EncodedTask) -> None:
    hybrid = attach(decoder, recipe(), seed=0)
    _step_gradients(decoder, hybrid, data, 5)
    module: Any = hybrid.modules["ipa"]
    assert module.base is None


# Training
# ------------------------------------------------------------------------------------------------------------


NUMBERS = ("one", "two", "three", "four", "five", "is", "what")


def says_numbers(said: list[str], wanted: list[str]) -> float:
    """Share of six words that are among these."""
    return float(np.mean([sum(word in NUMBERS for word in text.split()) / 6 for text in said]))


def test_the_reward_of_what_it_writes_rises(decoder: Any, tmp_path: Path) -> None:
    """A metric of the user's own is the reward, and the best control asks for it, the worst one does not."""
    task = load_task(str(write_chats(tmp_path / "chats.jsonl")), metric=says_numbers)
    data = encode(task, word_tokenizer(), 48)
    hybrid = attach(decoder, recipe(bins=2, interval=8, top_p=1.0, longest=6), seed=0)
    before = {n: p.clone() for n, p in decoder.named_parameters() if "autopeft" not in n}
    plan = TrainingPlan(steps=32, batch_size=16, eval_batch_size=48, device="cpu", seed=0)
    result, module = train(hybrid, data, plan), hybrid.modules["ipa"]
    rewards = result.outputs["quark"]["rewards"]
    assert len(rewards) == 4
    assert len(result.losses) == 32
    assert rewards[-1] > rewards[0] + 0.1
    assert all(torch.equal(p, before[n]) for n, p in decoder.named_parameters() if n in before)
    assert module.remarks() == []  # type: ignore[operator]
    batch, means = data.train.collate(range(20)), []
    words = word_tokenizer().convert_tokens_to_ids(list(NUMBERS))
    with torch.no_grad():
        for bins in (0, 1):
            given = added(module, batch["input_ids"], bins=torch.full((20,), bins))
            means.append(float(given.softmax(-1)[..., words].sum(-1).mean()))
    assert means[0] > means[1] + 0.02


class FakeSession:
    """A phase of so many steps, whose rows are all alike."""

    def __init__(self, steps: int, taken: int = 0) -> None:
        self.steps, self.taken, self.rows, self.log = steps, taken, 4, list[Any]()

    @property
    def over(self) -> bool:
        return self.taken == self.steps

    def write(self, rows: Any, **how: Any) -> list[Sample]:
        self.log.append(("write", rows, how, self.module.silent))
        return [Sample(i, (i,), "", float(i)) for i in range(10)]

    def batch(self, samples: list[Sample]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[s.row] for s in samples])}

    def step(self, batch: dict[str, Tensor]) -> None:
        self.log.append(batch)
        self.taken += 1

    module: Any = None


def test_rounds_are_of_the_base_first_and_of_both_later() -> None:
    module = attached(interval=3, top_p=0.6, bins=5)[2]
    (phase,) = module.phases()
    for taken, silent in ((0, [True, False, False]), (1, [False, False, False])):
        session = FakeSession(8, taken)
        session.module = module
        phase.run(session)
        rounds = [entry for entry in session.log if isinstance(entry, tuple)]
        assert [entry[3] for entry in rounds] == silent
        assert rounds[0][1:3] == (None, {"temperature": 1.0, "top_p": 0.6, "most": None})
        assert not module.silent
        first = [i for i, entry in enumerate(session.log) if isinstance(entry, tuple)]
        assert first == ([0, 4, 8] if not taken else [0, 3, 7])
    for batch in session.log[1:3]:
        bins = batch[FEATURE + module.policy.key]
        rows = batch["input_ids"][:, 0]
        assert bins.tolist() == [4 - int(row) // 2 for row in rows]


def test_one_round_is_remarked() -> None:
    module = attached()[2]
    (phase,) = module.phases()
    session = FakeSession(2)
    session.module = module
    phase.run(session)
    assert "what the base wrote alone" in module.remarks()[0]


def test_supervised_learns_the_rows_own_answers(decoder: Any, data: EncodedTask) -> None:
    hybrid = attach(decoder, recipe(training="supervised"), seed=0)
    assert not hybrid.graph.entries["ipa"].traits.phased
    losses = train(hybrid, data, TrainingPlan(steps=40, batch_size=8, device="cpu")).losses
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_training_is_the_same_with_and_without_shortcuts(decoder: Any, data: EncodedTask) -> None:
    runs = []
    for shortcuts in (True, False):
        plan = TrainingPlan(steps=4, batch_size=8, device="cpu", shortcuts=shortcuts)
        with attach(decoder, recipe(training="supervised"), seed=0) as hybrid:
            runs.append(train(hybrid, data, plan).losses)
    assert runs[0] == pytest.approx(runs[1], rel=2e-3)


def test_a_paused_training_goes_on_with_a_new_pool(decoder: Any, data: EncodedTask) -> None:
    own = recipe(interval=50, longest=3, samples=20)
    plan = TrainingPlan(steps=4, batch_size=8, device="cpu")
    with attach(decoder, own, seed=0) as hybrid:
        paused = train(hybrid, data, plan, until=2)
    assert paused.checkpoint is not None
    with attach(decoder, own, seed=0) as hybrid:
        rest = train(hybrid, data, plan, resume=paused.checkpoint)
    assert len(rest.losses) == 4
    assert len(rest.outputs["quark"]["rewards"]) == 1


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


def test_it_is_saved_and_comes_back(decoder: Any, tmp_path: Path) -> None:
    hybrid = attach(decoder, recipe(), seed=0)
    randomise(hybrid.root, std=0.3)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = decoder(ids).logits
        hybrid.save(tmp_path / "saved")
        fresh: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
        load(fresh, tmp_path / "saved")
        torch.testing.assert_close(fresh(ids).logits, expected)


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


def test_a_metric_of_likelihoods_is_no_reward(decoder: Any, data: EncodedTask) -> None:
    other = replace(data, task=replace(data.task, metric="likelihood"))
    with pytest.raises(TaskError, match="likelihood compares no texts"):
        train(attach(decoder, recipe(), seed=0), other, TrainingPlan(steps=2, batch_size=4, device="cpu"))


@pytest.mark.parametrize("options", [{"width": 15}, {"heads": 3, "width": 18, "kv_heads": 2}, {"width": 6}])
def test_widths_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"even number|divide"):
        recipe(**options)
