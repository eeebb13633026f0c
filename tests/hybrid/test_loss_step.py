"""Steps as terms of the loss see them: further forwards, other embeddings, exact over micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.loss_step import Step
from autopeft.injection.frames import frames
from autopeft.method import Context
from autopeft.method.reserved import Slot, reserve
from autopeft.recipe import Recipe
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.training.forward import Forward, shortest_forward
from autopeft.training.gradient import Gradient
from autopeft.training.plan import TrainingPlan

CPU = torch.device("cpu")


def recipe(*items: Any, level: str = "layers", at: str = "all") -> Recipe:
    body = {"layers": [{"at": at, "attach": list(items)}]} if level == "layers" else {"model": list(items)}
    return Recipe.from_dict({"name": "r", **body})


def step_on(name: str, *, pad: int = 2) -> Step:
    model, inputs = tiny_model(name), tiny_inputs(name, pad=pad)
    batch = {**inputs, "labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}

    def forward(batch: Any, altered: bool) -> Tensor:
        found: Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return found

    first = forward(batch, False)
    return Step(model, batch, first, forward=forward, total=lambda a, b: a.sum(), divisor=4.0)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "mpnet", "gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("prompt", [False, True])
def test_other_embeddings_stand_in_place_of_the_tokens(name: str, prompt: bool) -> None:
    """What the table itself yields changes nothing; other tokens' embeddings are those other tokens."""
    step = step_on(name)
    if prompt:
        attach(step.model, recipe({"prompt_tuning": {"length": 3}}, level="model"), seed=0)  # type: ignore[arg-type]
    plain = step.again()
    seen: list[Tensor] = []

    def same(e: Tensor) -> Tensor:
        seen.append(e)
        return e

    torch.testing.assert_close(step.again(embeddings=same), plain)
    ids = step.batch["input_ids"]
    assert [tuple(e.shape[:2]) for e in seen] == [tuple(ids.shape)], "once, and without reserved rows"
    other = ids.clone()
    other[:, 1] = (other[:, 1] + 7) % 40 + 3
    rows: list[Tensor] = []
    step.again(input_ids=other, embeddings=lambda e: rows.append(e.clone()) or e)
    replaced = step.again(embeddings=lambda e: rows[0])
    assert not torch.allclose(replaced, plain, atol=1e-4)
    torch.testing.assert_close(replaced, step.again(input_ids=other), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step.again(), plain)


def test_rows_lie_where_this_forward_laid_them_and_not_where_another_did() -> None:
    """A recomputation lays down the context of an earlier forward, of any hybrid, and leaves it."""
    step = step_on("bert")
    attach(step.model, recipe({"prompt_tuning": {"length": 3}}, level="model"), seed=0)  # type: ignore[arg-type]
    plain = step.again()
    slots = [Slot(3, offset=1)]
    left = Context(hybrid=-1, reserved=reserve(slots, torch.ones(2, 9), 9))
    before = frames.contexts
    try:
        frames.contexts = {(-1, "encoder"): left, **before}
        torch.testing.assert_close(step.again(embeddings=lambda e: e), plain)
    finally:
        frames.contexts = before


def test_a_model_without_text_has_no_embeddings_to_replace() -> None:
    model = tiny_model("vit")
    step = Step(
        model,
        {**tiny_inputs("vit"), "labels": torch.zeros(2)},
        torch.zeros(2, 2),
        forward=lambda batch, altered: torch.zeros(2, 2),
        total=lambda a, b: a.sum(),
        divisor=1.0,
    )
    with pytest.raises(UsageError, match="no table of text embeddings"):
        step.again(embeddings=lambda e: e)


class Twice(nn.Module):
    """The loss of a further forward as a term, where asked for with other inputs."""

    def __init__(self, **overrides: Any) -> None:
        super().__init__()
        self.overrides = overrides
        self.draws = 0

    def loss_terms(self, step: Any) -> Tensor | None:
        if self.draws:
            step.average(self.draws)
            return None
        found: Tensor = step.loss(step.again(**self.overrides))
        return found


def gradients(
    hybrid: Hybrid, owners: list[Any], micro_rows: int, weights: list[float] | None = None, **options: Any
) -> tuple[float, list[Tensor]]:
    data = encoded_task()
    forward = Forward(hybrid.model)
    if options.pop("shortcuts", False):
        plan = TrainingPlan(steps=1, batch_size=10, device="cpu")
        forward = shortest_forward(hybrid, data, plan, dropout=False)
    batch = next(forward.batches(data.train, 10, shuffle=True, seed=1, device=CPU))
    batch.pop("task_id", None)
    gradient = Gradient(forward, CrossEntropy(weights), micro_rows=micro_rows, device=CPU)
    for parameter in hybrid.trainable_parameters():
        parameter.grad = None
    loss = gradient.accumulate(batch, owners, hybrid.trainable_parameters())
    return loss, [p.grad.clone() for p in hybrid.trainable_parameters() if p.grad is not None]


@pytest.mark.parametrize("weights", [None, [0.3, 2.0]])
@pytest.mark.parametrize("micro_rows", [1, 3, 10])
def test_the_loss_of_a_further_forward_is_exact_over_micro_batches(
    micro_rows: int, weights: list[float] | None
) -> None:
    hybrid = attach(tiny_bert(), recipe({"lora": {"rank": 2}}), seed=0)
    randomise(hybrid.root)
    once, expected = gradients(hybrid, [], 10, weights)
    for owner in (Twice(), Twice(embeddings=lambda e: e)):
        loss, found = gradients(hybrid, [owner], micro_rows, weights)
        assert loss == pytest.approx(2 * once, rel=1e-5)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, 2 * b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("micro_rows", [1, 3, 10])
def test_the_mean_over_draws_that_are_alike_is_the_loss(micro_rows: int) -> None:
    hybrid = attach(tiny_bert(), recipe({"lora": {"rank": 2}}), seed=0)
    randomise(hybrid.root)
    once, expected = gradients(hybrid, [], 10)
    few, many = Twice(), Twice()
    few.draws, many.draws = 2, 3
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    handle = hybrid.model.register_forward_pre_hook(count)
    gradients(hybrid, [], micro_rows)
    parts, forwards = forwards, 0
    loss, found = gradients(hybrid, [few, many], micro_rows)
    handle.remove()
    assert forwards == 3 * parts, "the largest number of draws counts for all"
    assert loss == pytest.approx(once, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_with_short_cuts_a_further_forward_is_the_plain_one() -> None:
    """An untouched first layer comes from the store, and the last is computed for what the head reads; with
    other inputs everything is computed."""
    hybrid = attach(tiny_bert(), recipe({"lora": {"rank": 2}}, at="last 1"), seed=0)
    randomise(hybrid.root)
    layers: list[int] = []
    first = hybrid.injection.base.get_submodule("encoder.layer.0.attention.self")
    first.register_forward_pre_hook(lambda *_: layers.append(1))
    for owner, computed in ((Twice(), 0), (Twice(embeddings=lambda e: e), 1)):
        expected = gradients(hybrid, [owner], 10)[1]
        gradients(hybrid, [], 10, shortcuts=True)  # the rows are stored now
        layers.clear()
        found = gradients(hybrid, [owner], 5, shortcuts=True)[1]
        assert len(layers) == 2 * computed, "of two parts"
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_reads_the_embeddings_of_its_own_forward(reentrant: bool) -> None:
    model = tiny_bert()
    hybrid = attach(model, recipe({"lora": {"rank": 2}}), seed=0)
    randomise(hybrid.root)
    owner = Twice(embeddings=lambda e: 1.5 * e)
    plain = gradients(hybrid, [owner], 5)[1]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    again = gradients(hybrid, [owner], 5)[1]
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_answers_are_compared_only_where_it_is_known_how_they_are_read() -> None:
    first, second = torch.randn(4, 3), torch.randn(4, 3)

    def apart(labels: Tensor) -> Tensor:
        step = Step(
            nn.Identity(),
            {"labels": labels},
            first,
            forward=lambda batch, altered: second,
            total=lambda a, b: a.sum(),
            divisor=2.0,
        )
        return step.divergence(step.again())

    p, q = first.softmax(-1), second.softmax(-1)
    expected = 0.5 * ((p - q) * (p.log() - q.log())).sum() / 2
    torch.testing.assert_close(apart(torch.zeros(4, dtype=torch.long)), expected)
    with pytest.raises(UsageError, match=r"total=task.loss\(\).total"):
        apart(torch.zeros(4, 5, dtype=torch.long))


def test_the_balance_of_a_route_is_of_the_first_forward() -> None:
    item = {"route": {"children": ["lora"], "copies": 2, "top_k": 1, "balance": 0.1}}
    found = []
    for more in ([], [Twice(embeddings=lambda e: 3 * e)]):
        hybrid = attach(tiny_bert(), recipe(item), seed=0)
        hybrid.root.train()
        node: Any = hybrid.modules["route"]
        batch = encoded_task().train.collate(range(6))
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}

        def forward(given: Any, altered: bool, model: Any = hybrid.model) -> Tensor:
            out: Tensor = model(**{k: given[k] for k in ("input_ids", "attention_mask")}).logits
            return out

        step = Step(
            hybrid.model,
            {**inputs, "labels": batch["labels"]},
            forward(inputs, False),
            forward=forward,
            total=lambda logits, batch: nn.functional.cross_entropy(logits, batch["labels"]),
            divisor=1.0,
        )
        for owner in more:
            owner.loss_terms(step)
        found.append(node.loss_terms(step).detach())
    assert torch.equal(*found)


# In the Trainer


def rows(n: int) -> list[dict[str, Any]]:
    batch = encoded_task(train=n).train.collate(range(n))
    return [{name: batch[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(n)]


def arguments(folder: Path, batch: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 // batch, max_grad_norm=0.0, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, seed=1,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [8, 2])
@pytest.mark.parametrize("owner", ["twice", "draws"])
def test_the_trainer_runs_further_forwards_of_its_own_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, batch: int
) -> None:
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    hybrid = attach(model, recipe({"lora": {"rank": 2}}), seed=0)
    randomise(hybrid.root)
    weight, grads = model.classifier.weight, list[Tensor]()
    together = encoded_task(train=8).train.collate(range(8))
    plain = model(together["input_ids"], together["attention_mask"]).logits
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(plain, together["labels"]), weight)
    term = Twice(embeddings=lambda e: e) if owner == "twice" else Twice()
    term.draws = 3 if owner == "draws" else 0

    def watch(step: int, total: int) -> None:
        assert weight.grad is not None
        grads.append(weight.grad.clone())

    term.after_backward = watch  # type: ignore[assignment]
    hooks = len(model._forward_pre_hooks)
    given = hybrid.for_trainer()
    callback = given["callbacks"][0]
    monkeypatch.setattr(callback, "_owners", lambda: [term])
    monkeypatch.setattr(type(hybrid), "modules", property(lambda self: {"term": term}))
    data: Any = rows(8)
    given["compute_loss_func"] = callback.loss
    Trainer(model, arguments(tmp_path, batch), train_dataset=data, **given).train()
    factor = 2 if owner == "twice" else 1
    torch.testing.assert_close(grads[0], factor * expected, atol=1e-6, rtol=1e-4)
    assert len(model._forward_pre_hooks) == hooks


def test_a_term_that_asks_for_a_forward_outside_the_trainer_s_training_is_told_so() -> None:
    hybrid = attach(tiny_bert(), recipe({"lora_dropout": {"rank": 2, "draws": 2}}), seed=0)
    hybrid.root.train()
    with pytest.raises(UsageError, match="knows while the Trainer trains alone"):
        hybrid.callback().loss({"logits": torch.zeros(2, 2)}, torch.tensor([0, 1]))


def test_logits_of_a_plain_forward_are_left_as_they_are() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    before = logits(model, inputs)
    step = step_on("bert")
    step.again(embeddings=lambda e: 0 * e)
    assert torch.equal(logits(model, inputs), before)
