"""How an adapter policy is trained: terms of the loss, rounds of writing, and a toy reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import save_decoder, word_tokenizer, write_chats
from support.policy import added, attached, recipe
from support.tiny import randomise
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from autopeft.errors import TaskError
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.loss_step import Step
from autopeft.method import FEATURE, Sample, decay_targets
from autopeft.recipe import Recipe
from autopeft.tasks import load_task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan, train
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient

CPU = torch.device("cpu")


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


def test_the_bases_distribution_is_a_constant(decoder: Any, data: EncodedTask) -> None:
    """Also where a LoRA beside the policy has a gradient."""
    body = recipe(kl_coef=0.3).to_dict() | {"layers": [{"attach": ["lora"]}]}
    hybrid = attach(decoder, Recipe.from_dict(body), seed=0)
    randomise(hybrid.root, std=0.3)
    batch = data.train.collate(range(5))
    out = decoder(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    module: Any = hybrid.modules["ipa"]
    assert out.requires_grad
    assert module.base is not None
    assert not module.base.requires_grad


def test_gains_of_norms_decay_towards_one(decoder: Any) -> None:
    hybrid = attach(decoder, recipe(), seed=0)
    gains = [p for p in hybrid.root.parameters() if p.ndim == 1]
    assert gains
    assert decay_targets(hybrid.modules.values()) == {id(p): 1.0 for p in gains}


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


def test_a_paused_training_leaves_no_checkpoint(decoder: Any, data: EncodedTask) -> None:
    """Its pool would be lost. Without one it goes on as others do."""
    plan = TrainingPlan(steps=4, batch_size=8, device="cpu")
    with attach(decoder, recipe(interval=50, longest=3, samples=20), seed=0) as hybrid:
        paused = train(hybrid, data, plan, until=2)
    assert (paused.stopped, paused.steps, paused.checkpoint) == ("paused", 2, None)
    with attach(decoder, recipe(training="supervised"), seed=0) as hybrid:
        whole = train(hybrid, data, plan).losses
    with attach(decoder, recipe(training="supervised"), seed=0) as hybrid:
        checkpoint = train(hybrid, data, plan, until=2).checkpoint
    assert checkpoint is not None
    with attach(decoder, recipe(training="supervised"), seed=0) as hybrid:
        assert train(hybrid, data, plan, resume=checkpoint).losses == whole


def test_a_metric_of_likelihoods_is_no_reward(decoder: Any, data: EncodedTask) -> None:
    other = replace(data, task=replace(data.task, metric="likelihood"))
    with pytest.raises(TaskError, match="likelihood compares no texts"):
        train(attach(decoder, recipe(), seed=0), other, TrainingPlan(steps=2, batch_size=4, device="cpu"))
