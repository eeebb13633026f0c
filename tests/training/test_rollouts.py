"""What a phase has the model write, with rewards, and what it learns from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.language import save_decoder, word_tokenizer, write_chats
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from autopeft.errors import TaskError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.method import FEATURE, Phase, Sample, Session
from autopeft.recipe import Recipe
from autopeft.tasks import load_task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.kinds import Metric, get_kind, get_metric
from autopeft.tasks.kinds.conversation_tokens import IGNORED
from autopeft.training import TrainingPlan, train

PLAN = TrainingPlan(steps=2, batch_size=4, device="cpu", seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EncodedTask:
    folder = tmp_path_factory.mktemp("chats")
    task = load_task(str(write_chats(folder / "chats.jsonl")), metric="rouge_l")
    return encode(task, word_tokenizer(), 48)


def driven(hybrid: Hybrid, act: Callable[[Session], None], data: EncodedTask, **plan: Any) -> list[float]:
    """The losses of a training whose only phase is `act`."""
    module: Any = hybrid.modules["lora"]
    module.phases = lambda: [Phase("drive", run=act)]
    return train(hybrid, data, replace(PLAN, **plan)).losses


@pytest.fixture
def hybrid(tmp_path: Path) -> Hybrid:
    model: Any = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "llama"))
    recipe = {"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}], "training": {"warmup": 0.0}}
    return attach(model, Recipe.from_dict(recipe), seed=0)


def test_it_writes_to_each_row_once_with_the_tasks_metric(hybrid: Hybrid, data: EncodedTask) -> None:
    found: list[Sample] = []

    def act(session: Session) -> None:
        found.extend(session.write(temperature=0.0))
        assert session.rows == 4
        assert hybrid.modules["lora"].training, "it is as it was"

    driven(hybrid, act, data)
    train_rows: Any = data.train
    assert sorted(sample.row for sample in found) == list(range(len(train_rows)))
    metric = get_metric(data.task.metric)
    assert metric.name == "rouge_l"
    for sample in found[:6]:
        said, wanted = (
            np.asarray([text], dtype=object) for text in (sample.text, train_rows.truth[sample.row])
        )
        assert sample.reward == metric.score(said, wanted)
    with torch.no_grad():
        texts = get_kind("causal_lm").scorer.generate(
            hybrid.model.eval(), train_rows, [s.row for s in found[:6]], generation(temperature=0.0)
        )
    assert texts == [sample.text for sample in found[:6]]


def generation(**how: Any) -> Any:
    return get_kind("causal_lm").scorer.generation({}, **how)


def test_draws_come_from_the_trainings_seed(hybrid: Hybrid, data: EncodedTask) -> None:
    runs: list[list[Sample]] = []
    for seed in (1, 1, 2):
        driven(hybrid, lambda session: runs.append(session.write(5, most=3)), data, seed=seed)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len({sample.row for sample in runs[0]}) == 5
    assert all(len(sample.tokens) <= 3 for sample in runs[0])


def test_a_batch_of_samples_learns_what_was_written(hybrid: Hybrid, data: EncodedTask) -> None:
    split: Any = data.train
    samples = [Sample(3, (9, 10, 5), "", 0.0), Sample(0, (8,), "", 1.0), Sample(3, (7, 5), "", 0.0)]
    batches: list[dict[str, Tensor]] = []
    losses = driven(hybrid, lambda session: batches.append(session.batch(samples)), data)
    assert losses == []
    (batch,) = batches
    for sample, ids, mask, labels in zip(
        samples, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        prompt, n = split.prompt(sample.row), int(mask.sum())
        assert ids[:n].tolist() == [*prompt, *sample.tokens]
        assert labels[labels != IGNORED].tolist() == list(sample.tokens)
        assert labels[len(prompt) : n].tolist() == list(sample.tokens)


def test_a_step_on_a_batch_is_one_of_the_training(hybrid: Hybrid, data: EncodedTask) -> None:
    seen: list[dict[str, Tensor]] = []

    def act(session: Session) -> None:
        batch = session.batch([Sample(0, (8, 5), "", 1.0)] * 4)
        seen.append(batch)
        assert session.step(batch)
        assert session.taken == 1
        assert session.step()
        assert not session.step(batch)

    losses = driven(hybrid, act, data)
    assert len(losses) == 2
    loss = data.task.loss()
    hybrid.detach()  # which was the identity when the first step began
    logits = hybrid.model(seen[0]["input_ids"], seen[0]["attention_mask"]).logits
    assert losses[0] == pytest.approx(float(loss.mean(logits, seen[0])), rel=1e-5)


def test_what_a_batch_says_of_its_rows_reaches_modules_alone(hybrid: Hybrid, data: EncodedTask) -> None:
    module: Any = hybrid.modules["lora"]
    found: list[Tensor] = []
    plain = module.delta

    def delta(site: Any, x: Tensor, y: Tensor, call: Any) -> Tensor:
        # Short cuts are tried on a batch that says nothing.
        found.extend(v for k, v in call.context.features.items() if k == "bin")
        out: Tensor = plain(site, x, y, call)
        return out

    module.delta = delta
    said = torch.tensor([4, 1, 0, 2])

    def act(session: Session) -> None:
        session.step({**session.batch([Sample(i, (8,), "", 1.0) for i in range(4)]), f"{FEATURE}bin": said})

    driven(hybrid, act, data, micro_batch=2)
    halves = {tuple(part.tolist()) for part in found}
    assert halves == {(4, 1), (0, 2)}


def test_a_model_that_hands_nothing_on_is_refused() -> None:
    from autopeft.training.losses import logits_of

    class Narrow(nn.Module):
        def forward(self, input_ids: Tensor) -> tuple[Tensor]:
            return (input_ids.float(),)

    with pytest.raises(UsageError, match="takes no further keyword arguments"):
        logits_of(Narrow(), {"input_ids": torch.ones(1, 2, dtype=torch.long), f"{FEATURE}x": torch.ones(1)})


def test_rewards_are_a_metric_of_texts() -> None:
    kind = get_kind("causal_lm")
    wanted = np.asarray(["a b", "c"], dtype=object)
    own = Metric(
        "own", 0, 9, "length", lambda said, _: float(np.mean([len(s) for s in said])), generated=True
    )
    assert kind.scorer.rewards(own, ["xyz", ""], wanted).tolist() == [3.0, 0.0]
    exact, likelihood = kind.scorer.metrics[2], kind.scorer.metrics[0]
    assert kind.scorer.rewards(exact, ["a  b", "d"], wanted).tolist() == [1.0, 0.0]
    with pytest.raises(
        TaskError,
        match="compares no texts: take exact_match, last_number, rouge_1, rouge_2, rouge_l, chrf, or a",
    ):
        kind.scorer.rewards(likelihood, ["a"], wanted[:1])


def test_kinds_that_write_nothing_refuse_it() -> None:
    hybrid = attach(tiny_bert(), Recipe.from_dict({"layers": [{"attach": ["lora"]}]}), seed=0)
    with pytest.raises(TaskError, match="write no texts; take a decoder"):
        driven(hybrid, lambda session: session.write() and None, encoded_task())
