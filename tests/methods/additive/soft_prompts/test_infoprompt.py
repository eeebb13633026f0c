"""InfoPrompt: the variational head, its terms against loops and their sum, and where their gradients go."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from autopeft.methods.additive.soft_prompts.infoprompt import Posterior
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import configured
from support.training import encoded_task, tiny_bert
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from autopeft.errors import CompositionError, MethodError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan


def recipe(**config: Any) -> Recipe:
    item = {"infoprompt": {"length": 2, "latent": 6, **config}}
    return Recipe.from_dict({"name": "i", "model": [item], "training": {"learning_rate": 0.01}})


def attached(**config: Any) -> tuple[Hybrid, Any]:
    hybrid = attach(tiny_bert(), recipe(**config), seed=0)
    randomise(hybrid.root, std=0.3)
    return hybrid, hybrid.modules["infoprompt"]


def accumulated(hybrid: Hybrid, owners: list[Any], seed: int = 0, micro_rows: int = 6) -> float:
    batch = encoded_task().train.collate(range(6))
    gradient = Gradient(
        Forward(hybrid.model), CrossEntropy(None), micro_rows=micro_rows, device=torch.device("cpu")
    )
    hybrid.root.zero_grad()
    hybrid.root.train()
    torch.manual_seed(seed)
    return gradient.accumulate(batch, owners, [])


def test_defaults_are_those_of_the_authors_code() -> None:
    c = configured("infoprompt").config
    assert (c.length, c.latent, c.beta, c.gamma, c.kappa, c.decay) == (1, 32, 0.2, 0.1, 0.1, 0.0)


def test_predictions_are_those_of_the_mean_and_the_label_words() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    hybrid = attach(model, recipe(label_words=[7, 9]), seed=0)
    module: Any = hybrid.modules["infoprompt"]
    table = model.get_input_embeddings().weight
    assert torch.equal(module.words, table[[7, 9]])
    randomise(hybrid.root, std=0.3)
    seen: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = logits(model, inputs)
    expected = module.output(module.mean(seen[0])) @ module.words.T
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    hybrid.root.train()
    assert not torch.allclose(logits(model, inputs), found, atol=1e-3), "z is drawn while it trains"


@pytest.mark.parametrize("ids", [[1, 2, 3], [], [-1, 2], [1, 40]])
def test_label_words_must_be_as_many_as_classes_and_in_the_vocabulary(ids: list[int]) -> None:
    with pytest.raises(MethodError, match=r"the tokens from 0 to 39; name one token's id for each class"):
        attach(tiny_bert(), recipe(label_words=ids), seed=0)


def test_a_second_head_is_refused() -> None:
    """Each takes the head's logits away, which two together would leave in, negated."""
    two = Recipe.from_dict({"name": "i", "model": ["infoprompt", {"infoprompt": {}, "as": "second"}]})
    with pytest.raises(CompositionError, match=r"infoprompt and second would each put a head.*such as idpg"):
        attach(tiny_bert(), two)


def test_the_prompt_is_generated_for_each_text_by_itself() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    hybrid = attach(model, recipe(), seed=0)
    randomise(hybrid.root, std=0.5)
    together = logits(model, inputs)
    for row in range(len(together)):
        alone = logits(model, {k: v[row : row + 1] for k, v in inputs.items()})
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-5, rtol=1e-4)


def test_without_its_terms_it_is_a_prompt_with_one_forward() -> None:
    hybrid, module = attached(beta=0.0, gamma=0.0, kappa=0.0)
    assert accumulated(hybrid, [module]) == accumulated(hybrid, [])
    assert all(p.grad is None for p in module.critic.parameters())


def head_term(module: Any, rows: Tensor, tokens: Tensor, mask: Tensor) -> float:
    """−log of the prompt's share among itself and the real tokens, text by text."""
    total, label = 0.0, module.words.mean(0)
    for i in range(len(rows)):
        score = [float((rows[i].mean(0) @ label).detach()) / 4]
        score += [float((tokens[i, t] @ label).detach()) / 4 for t in range(len(mask[i])) if mask[i, t]]
        total -= math.log(math.exp(score[0]) / sum(map(math.exp, score)))
    return total / len(rows)


def representation_term(module: Any, rows: Tensor, after: Posterior, before: Posterior) -> float:
    """−log of the share of a draw with the prompt among itself and four without it, drawn from seed 1."""
    torch.manual_seed(1)
    own = after.mean + torch.randn(len(rows), 1, 6)[:, 0] * after.log_std.exp()
    others = before.mean[:, None] + torch.randn(len(rows), 4, 6) * before.log_std.exp()[:, None]
    total = 0.0
    for i in range(len(rows)):
        context = torch.stack([module.critic(row) for row in rows[i]]).mean(0)
        score = [float((module.output(own[i]) @ context).detach()) / 4]
        score += [float((module.output(others[i, j]) @ context).detach()) / 4 for j in range(4)]
        total -= math.log(math.exp(score[0]) / sum(map(math.exp, score)))
    return total / len(rows)


def test_the_head_s_term_is_a_loop_over_the_tokens() -> None:
    _, module = attached()
    rows, tokens = torch.randn(3, 2, 16, requires_grad=True), torch.randn(3, 5, 16)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    found = module.head_loss(rows, tokens, mask)
    assert float(found.detach()) == pytest.approx(head_term(module, rows, tokens, mask), rel=1e-4)
    (gradient,) = torch.autograd.grad(found, rows)
    assert gradient.any()
    far = torch.zeros(3, 2, 16) + 100 * module.words.mean(0).detach()
    assert float(module.head_loss(far, tokens, mask).detach()) < 1e-3


def test_the_representation_s_term_is_a_loop_over_the_draws() -> None:
    _, module = attached(negatives=4)
    rows = torch.randn(3, 2, 16, requires_grad=True)
    after = Posterior(torch.randn(3, 6, requires_grad=True), torch.randn(3, 6))
    before = Posterior(torch.randn(3, 6), torch.randn(3, 6))
    torch.manual_seed(1)
    found = module.representation_loss(rows, after, before)
    expected = representation_term(module, rows, after, before)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    gradients = torch.autograd.grad(found, [rows, after.mean], allow_unused=True)
    assert gradients[0] is None, "the context is detached"
    assert gradients[1] is not None
    assert gradients[1].any(), "it reaches the prompt through the forward with it"


def test_the_divergence_is_that_of_two_normals() -> None:
    mean, log_std = torch.randn(3, 6), torch.randn(3, 6)
    found = Posterior(mean, log_std).divergence()
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(found, expected)


WEIGHTS = [(0.3, 0.0, 0.0), (0.0, 0.7, 0.0), (0.0, 0.0, 0.5), (0.3, 0.7, 0.5)]


@pytest.mark.parametrize(("beta", "gamma", "kappa"), WEIGHTS)
def test_the_loss_is_the_weighted_sum_of_its_terms(beta: float, gamma: float, kappa: float) -> None:
    """β·L_rep + γ·L_head + κ·(KL with the prompt + KL without it), made from what the model's parts see."""
    model, inputs = tiny_model("bert", hidden_size=16), tiny_inputs("bert", batch=3, pad=2)
    inputs["attention_mask"][0, 4:] = 0
    config = {"beta": beta, "gamma": gamma, "kappa": kappa, "decay": 0.5, "negatives": 4}
    hybrid = attach(model, recipe(**config), seed=0)
    randomise(hybrid.root, std=0.6)
    module: Any = hybrid.modules["infoprompt"]
    hybrid.root.train()
    read: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    made: list[tuple[Tensor, Tensor]] = []
    prompt = module.prompt

    def watched(site: Any, x: Tensor, call: Any) -> Tensor:
        made.append((prompt(site, x, call), x))
        return made[-1][0]

    module.prompt = watched

    class Step:
        """The rows once more; what is drawn behind that forward begins at seed 1."""

        def again(self) -> Tensor:
            found = logits(model, inputs)
            torch.manual_seed(1)
            return found

    module.before_step(3, 12)
    logits(model, inputs)
    step: Any = Step()
    found = module.loss_terms(step)
    if beta or kappa:
        assert not torch.allclose(read[0], read[1], atol=1e-3), "once with the prompt and once without it"
        after, before = (Posterior(module.mean(h), module.log_std(h).clamp(-2, 10)) for h in read)
        assert bool((module.log_std(read[0]) < -2).any()), "some are cut"
        kl = sum(
            float(kl_divergence(Normal(p.mean, p.log_std.exp()), Normal(0.0, 1.0)).mean().detach())
            for p in (after, before)
        )
    expected = beta and beta * representation_term(module, made[0][0], after, before)
    expected += gamma and gamma * head_term(module, *made[0], inputs["attention_mask"])
    expected += kappa and kappa * kl
    assert float(found) == pytest.approx((1 - 0.5 * 3 / 12) * expected, rel=1e-4)


@pytest.mark.parametrize("term", ["beta", "gamma", "kappa"])
def test_each_term_reaches_the_generator(term: str) -> None:
    off = {"beta": 0.0, "gamma": 0.0, "kappa": 0.0}
    hybrid, module = attached(**off)
    accumulated(hybrid, [module])
    plain = [p.grad.clone() for p in module.generator.parameters()]
    hybrid, module = attached(**{**off, term: 1.0})
    forwards: list[int] = []
    backbones: list[int] = []
    hybrid.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    hybrid.model.base_model.encoder.register_forward_pre_hook(lambda *_: backbones.append(1))
    accumulated(hybrid, [module])
    found = [p.grad for p in module.generator.parameters()]
    assert any(not torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, found, strict=True))
    assert len(forwards) == (1 if term == "gamma" else 2), "once more, without the prompt"
    assert len(backbones) == len(forwards) + 1, "and the bare one before the first"


def test_the_terms_fall_to_nothing_where_they_decay() -> None:
    hybrid, module = attached(decay=1.0)
    first = accumulated(hybrid, [module])
    module.before_step(10, 10)
    last = accumulated(hybrid, [module])
    module.config = configured("infoprompt", length=2, latent=6, beta=0.0, gamma=0.0, kappa=0.0).config
    plain = accumulated(hybrid, [module])
    assert last == pytest.approx(plain, rel=1e-6)
    assert first > plain


def test_it_trains_and_leaves_the_backbone_and_can_be_copied_and_saved(tmp_path: Any) -> None:
    losses = []
    for micro in (None, 3):
        hybrid = attach(tiny_bert(), recipe(), seed=0)
        backbone = {n: p.clone() for n, p in hybrid.backbone_parameters().items()}
        before = {n: p.clone() for n, p in hybrid.root.named_parameters()}
        plan = TrainingPlan(steps=4, batch_size=8, device="cpu", micro_batch=micro)
        losses.append(train(hybrid, encoded_task(), plan).losses)
        assert all(torch.equal(p, backbone[n]) for n, p in hybrid.backbone_parameters().items())
        assert [n for n, p in hybrid.root.named_parameters() if torch.equal(p, before[n])] == []
        copy.deepcopy(hybrid.model)
        hybrid.save(tmp_path / str(micro))
    assert losses[0] != losses[1], "each part draws anew"
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.5)
