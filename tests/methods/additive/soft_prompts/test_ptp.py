"""PTP: the loss of perturbed inputs beside the loss, on any prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import randomise
from support.toy import configured
from support.training import encoded_task, tiny_bert
from torch import Tensor
from transformers import Trainer, TrainingArguments

from autopeft.errors import MethodError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.loss_step import Step
from autopeft.hybrid.policies import Policies
from autopeft.recipe import Recipe
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

CPU = torch.device("cpu")
LOSS = CrossEntropy(None)
HOSTS = [
    {"layers": [{"attach": [{"p_tuning_v2": {"length": 3, "dropout": 0.0}}]}]},
    {"model": [{"prompt_tuning": {"length": 3}}]},
]


def recipe(host: int = 0, **config: Any) -> Recipe:
    training = {"policies": [{"ptp": config}], "learning_rate": 0.01}
    return Recipe.from_dict({"name": "r", **HOSTS[host], "training": training})


def attached(host: int = 0, **config: Any) -> Hybrid:
    hybrid = attach(tiny_bert(), recipe(host, **config), seed=0)
    randomise(hybrid.root, std=0.5)
    return hybrid


def step_on(hybrid: Hybrid, rows: int = 6) -> Step:
    batch = encoded_task().train.collate(range(rows))
    batch.pop("task_id", None)
    forward = Forward(hybrid.model)
    return Step(
        hybrid.model,
        batch,
        forward(batch),
        forward=lambda b, altered: forward.whole(b),
        total=LOSS.total,
        divisor=float(rows),
    )


def gradients(hybrid: Hybrid, owners: list[Any], micro_rows: int = 6) -> tuple[float, list[Tensor]]:
    batch = encoded_task().train.collate(range(6))
    gradient = Gradient(Forward(hybrid.model), LOSS, micro_rows=micro_rows, device=CPU)
    parameters = hybrid.trainable_parameters()
    for parameter in parameters:
        parameter.grad = None
    loss = gradient.accumulate(batch, owners, parameters)
    return loss, [p.grad.clone() for p in parameters if p.grad is not None]


def policy_of(hybrid: Hybrid) -> Any:
    return Policies(hybrid.recipe.training).terms[0]


@pytest.mark.parametrize("host", [0, 1])
@pytest.mark.parametrize(
    "config",
    [
        {"sigma": 0.0},
        {"perturbation": "adversarial", "epsilon": 0.0, "steps": 2},
        {"perturbation": "masking", "share": 0.0, "mask_id": 3, "spared": []},
    ],
)
@pytest.mark.parametrize("micro_rows", [6, 4])
def test_without_a_perturbation_the_loss_is_the_host_s(
    host: int, config: dict[str, Any], micro_rows: int
) -> None:
    hybrid = attached(host, weight=0.5, **config)
    plain, expected = gradients(hybrid, [])
    loss, found = gradients(hybrid, [policy_of(hybrid)], micro_rows)
    assert loss == pytest.approx(1.5 * plain, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, 1.5 * b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_adversarial_perturbation_stays_in_its_ball_and_is_at_its_edge(steps: int) -> None:
    hybrid = attached(perturbation="adversarial", epsilon=0.05, steps=steps)
    with torch.no_grad():
        hybrid.model.get_input_embeddings().weight[0] = 1.0  # padding, which is zero in a new model alone
    step = step_on(hybrid)
    ids, mask = step.batch["input_ids"], step.batch["attention_mask"]
    assert not mask.all()
    e = hybrid.model.get_input_embeddings()(ids).detach() * mask[..., None]
    delta = policy_of(hybrid).worst(step)
    radius = 0.05 * torch.linalg.vector_norm(e, dim=(1, 2))
    torch.testing.assert_close(torch.linalg.vector_norm(delta, dim=(1, 2)), radius, atol=1e-5, rtol=1e-4)
    assert not delta.requires_grad
    assert not (delta * (1 - mask[..., None])).any(), "padding is left"


def test_one_adversarial_step_goes_along_the_gradient_of_each_row() -> None:
    hybrid = attached(perturbation="adversarial", epsilon=0.02, step_size=0.5)
    step = step_on(hybrid)
    mask = step.batch["attention_mask"][..., None]
    table = hybrid.model.get_input_embeddings()
    e = table(step.batch["input_ids"]).detach()
    moved = e.clone().requires_grad_()
    (g,) = torch.autograd.grad(step.loss(step.again(embeddings=lambda _: moved)), moved)
    norms = torch.linalg.vector_norm(e * mask, dim=(1, 2), keepdim=True)
    expected = 0.5 * 0.02 * norms * g / torch.linalg.vector_norm(g, dim=(1, 2), keepdim=True)
    torch.testing.assert_close(policy_of(hybrid).worst(step), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sure", [True, False])
def test_in_16_bits_the_perturbation_is_finite_and_in_its_ball(dtype: torch.dtype, sure: bool) -> None:
    """Also where the head is sure of every row, so that the gradient all but vanishes."""
    made = recipe(1, perturbation="adversarial", epsilon=0.05, steps=2)
    hybrid = attach(tiny_bert().to(dtype), made, seed=0)
    if sure:
        biases = [p for p in hybrid.head().values() if p.ndim == 1]
        with torch.no_grad():
            for bias in biases:
                bias.copy_(torch.linspace(-15, 15, len(bias)))
    step: Any = step_on(hybrid)
    if sure:
        step.batch = {**step.batch, "labels": step.logits.argmax(-1)}
    delta = policy_of(hybrid).worst(step)
    e = hybrid.model.get_input_embeddings()(step.batch["input_ids"]).detach().float()
    radius = 0.05 * torch.linalg.vector_norm(e * step.batch["attention_mask"][..., None], dim=(1, 2))
    norms = torch.linalg.vector_norm(delta, dim=(1, 2))
    assert (norms <= 1.001 * radius).all()
    assert sure or (norms >= 0.999 * radius).all()
    assert policy_of(hybrid).loss_terms(step).isfinite()


def test_the_adversarial_loss_is_above_that_of_noise_of_the_same_size() -> None:
    hybrid = attached(perturbation="adversarial", epsilon=0.3, steps=3)
    policy, step = policy_of(hybrid), step_on(hybrid, 12)
    worst = policy.worst(step)
    noise = torch.randn(20, *worst.shape) * step.batch["attention_mask"][..., None]
    noise *= torch.linalg.vector_norm(worst, dim=(1, 2)).view(1, -1, 1, 1) / torch.linalg.vector_norm(
        noise, dim=(2, 3), keepdim=True
    )
    with torch.no_grad():
        at_noise = torch.stack([step.loss(step.again(embeddings=lambda e, n=n: e + n)) for n in noise])
        at_worst = step.loss(step.again(embeddings=lambda e: e + worst))
        plain = step.loss(step.logits)
    assert at_worst > at_noise.mean() + (at_noise.mean() - plain).abs()
    assert at_worst > plain


def test_noise_is_normal_and_leaves_the_prompt() -> None:
    hybrid = attached(1, sigma=0.3)
    seen: list[Tensor] = []
    step: Any = step_on(hybrid)
    again = step.again
    table = hybrid.model.get_input_embeddings()
    table.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    again()
    step_terms = policy_of(hybrid).loss_terms(step)
    clean, noisy = seen
    assert step_terms.requires_grad
    assert torch.equal(clean[:, :3], noisy[:, :3]), "the prompt's rows"
    delta = (noisy - clean)[:, 3:]
    assert float(delta.std()) == pytest.approx(0.3, rel=0.1)
    assert float(delta.mean()) == pytest.approx(0.0, abs=0.03)


def test_masking_leaves_special_tokens_and_padding() -> None:
    policy = configured("ptp", perturbation="masking", share=0.5, mask_id=3, spared=(1, 2))
    ids = torch.randint(5, 30, (40, 50))
    ids[:, 0], ids[:, 30] = 1, 2
    mask = torch.ones_like(ids)
    mask[:, 31:] = 0
    torch.manual_seed(0)
    found = policy.masked({"input_ids": ids, "attention_mask": mask})
    assert torch.equal(found[:, [0, 30]], ids[:, [0, 30]])
    assert torch.equal(found[:, 31:], ids[:, 31:])
    masked = found[:, 1:30] != ids[:, 1:30]
    assert float(masked.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert set(found[:, 1:30][masked].tolist()) == {3}


def test_masking_needs_a_token_and_those_that_stay() -> None:
    with pytest.raises(UsageError, match="mask_id"):
        recipe(perturbation="masking")
    with pytest.raises(UsageError, match=r"needs `spared`.*all_special_ids"):
        recipe(perturbation="masking", mask_id=3)


@pytest.mark.parametrize("perturbation", ["noise", "adversarial"])
@pytest.mark.parametrize("host", [0, 1])
def test_it_trains_the_prompt_and_nothing_of_the_backbone(host: int, perturbation: str) -> None:
    plan = TrainingPlan(steps=3, batch_size=16, device="cpu")
    losses = []
    for _ in range(2):
        with attach(tiny_bert(), recipe(host, perturbation=perturbation), seed=0) as hybrid:
            before = {n: p.clone() for n, p in hybrid.backbone_parameters().items()}
            losses.append(train(hybrid, encoded_task(), plan).losses)
            assert all(torch.equal(p, before[n]) for n, p in hybrid.backbone_parameters().items())
            assert len(hybrid.modules) == 1, "it has no module"
            table = hybrid.model.get_input_embeddings()
            assert table.weight.grad is None
    assert losses[0] == losses[1]
    assert losses[0][0] > 1.0, "two losses of about ln 2"


def test_beside_nothing_but_the_head_it_is_refused() -> None:
    made = Recipe.from_dict({"name": "r", "training": {"policies": ["ptp"]}})
    with (
        attach(tiny_bert(), made, seed=0) as hybrid,
        pytest.raises(UsageError, match="'ptp' finds nothing to act on"),
    ):
        train(hybrid, encoded_task(), TrainingPlan(steps=1, batch_size=4, device="cpu"))


def test_reentrant_checkpointing_is_refused_with_the_way_out() -> None:
    hybrid = attached(perturbation="adversarial")
    model = hybrid.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model.train()
    with pytest.raises(MethodError, match="use_reentrant=False"):
        gradients(hybrid, [policy_of(hybrid)])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients(hybrid, [policy_of(hybrid)])


def test_the_trainer_trains_with_it_and_scores_without(tmp_path: Path) -> None:
    hybrid = attached(1, sigma=0.0)
    batch = encoded_task(train=8).train.collate(range(8))
    names = ("input_ids", "attention_mask", "labels")
    rows: Any = [{name: batch[name][i] for name in names} for i in range(8)]
    hybrid.model.eval()
    with torch.no_grad():
        logits = hybrid.model(batch["input_ids"], batch["attention_mask"]).logits
    plain = float(LOSS.mean(logits, batch))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=8, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, per_device_eval_batch_size=8,
    )  # fmt: skip
    given = hybrid.for_trainer()
    assert "compute_loss_func" in given
    trainer = Trainer(hybrid.model, arguments, train_dataset=rows, eval_dataset=rows, **given)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-4)
    for module in hybrid.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert trainer.train().training_loss == pytest.approx(2 * plain, rel=1e-2)
