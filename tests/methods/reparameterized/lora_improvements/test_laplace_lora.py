from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.logistic import Logistic, dense, inputs_of
from support.tiny import LogitsObjective, logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, build, configured, counted, toy_spec, toy_specs
from support.training import assert_same_state, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.errors import MethodError, UsageError
from autopeft.hybrid import Hybrid, attach, load, predictive
from autopeft.method import Concludes, Posterior
from autopeft.nn import softmax_root
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

Batch = dict[str, Tensor]


@settings(deadline=None)
@given(toy_specs, st.integers(1, 8), st.sampled_from(["all", "last_layer"]))
def test_count_is_loras(spec: BackboneSpec, rank: int, sub: str) -> None:
    config = {"rank": rank, "sites": ("q", "v", "down")}
    deployed, trained, held, held_trained = counted("laplace_lora", spec, sub=sub, **config)
    assert deployed == trained == held == held_trained == counted("lora", spec, **config)[0]


def test_it_is_lora_with_something_after_training_and_at_predictions() -> None:
    module, sites = build("laplace_lora", toy_spec(), rank=3, alpha=5.0)
    lora, _ = build("lora", toy_spec(), rank=3, alpha=5.0)
    randomise(module)
    lora.load_state_dict({k: v for k, v in module.state_dict().items() if "posterior" not in k})
    x, y = torch.randn(2, 4, 6), torch.zeros(2, 4, 6)
    assert torch.equal(module.delta(sites[0], x, y, CALL), lora.delta(sites[0], x, y, CALL))
    assert isinstance(module, Concludes)
    assert isinstance(module, Posterior)
    assert module.samples == 0


def test_the_posterior_is_as_large_as_it_says() -> None:
    spec, rank, n = toy_spec(hidden=12, kv=9), 3, 5
    module, sites = build("laplace_lora", spec, rank=rank, n_kfac=n)
    held = sum(b.numel() for b in module.buffers())
    of_site = [(s.in_features + s.out_features) * n + 2 * (rank**2 + rank + n) for s in sites]
    assert held == sum(of_site) + 1
    last, _ = build("laplace_lora", spec, rank=rank, n_kfac=n, sub="last_layer")
    assert sum(b.numel() for b in last.buffers()) == sum(of_site[2:]) + 1
    assert [k for k, _ in last.named_buffers() if "encoder-0" in k] == []


def test_pairs_without_a_posterior_have_dropout_too() -> None:
    module, sites = build("laplace_lora", toy_spec(), sub="last_layer", dropout=0.25)
    randomise(module, std=0.5)
    x = torch.randn(50, 6)
    for site in sites:
        plain = module.eval().delta(site, x, x, CALL)
        assert not torch.allclose(module.train().delta(site, x, x, CALL), plain, atol=1e-2)


# On a logistic regression


@pytest.mark.parametrize("name", ["A", "B"])
def test_with_full_rank_the_block_of_one_row_is_the_exact_ggn(name: str) -> None:
    toy, x = Logistic(), inputs_of(1)
    toy.conclude(x)
    root = softmax_root(toy.logits({"x": x}).detach())[0]
    j = toy.jacobian(name, x)
    torch.testing.assert_close(toy.curvature(name), j.T @ root @ root.T @ j, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", ["A", "B"])
def test_over_rows_and_positions_it_is_k_fac(name: str, batch_size: int) -> None:
    """(Σ g·gᵀ over rows, positions and classes) ⊗ (Σ a·aᵀ over rows and positions / rows)."""
    toy, x = Logistic(), inputs_of(8, 3)
    toy.conclude(x, batch_size)
    root = softmax_root(toy.logits({"x": x}).detach())
    a, b, scale = toy.pair.A.detach(), toy.pair.B.detach(), toy.module.scale
    # Each position adds to the logits, so all have the gradient of their row.
    at_y = (scale * root.mT)[:, None].expand(8, 3, 6, 6).reshape(-1, 6)
    vectors = (at_y @ b, x.reshape(-1, 6)) if name == "A" else ((x @ a.T).reshape(-1, 2), at_y)
    expected = torch.kron(*(v.T @ v for v in vectors)) / 8
    torch.testing.assert_close(toy.curvature(name), expected, atol=1e-3, rtol=1e-3)


def test_the_uncertainty_of_the_logits_is_that_of_both_factors() -> None:
    toy, x = Logistic(n_kfac=3), inputs_of(5, 2, seed=3)
    toy.conclude(inputs_of(8, 3))
    p = float(toy.module.posterior_precision)
    got = toy.covariance(x)
    for row in range(5):
        expected = torch.zeros(6, 6)
        for name in ("A", "B"):
            j, h = toy.jacobian(name, x[row]), toy.curvature(name)
            expected += j @ torch.linalg.inv(h + p * torch.eye(len(h))) @ j.T
        torch.testing.assert_close(got[row], expected, atol=1e-4, rtol=1e-3)


def test_variance_grows_away_from_the_data() -> None:
    toy = Logistic(n_kfac=6, prior_precision=1.0)
    axis = F.normalize(inputs_of(1, seed=1), dim=-1)
    toy.conclude(axis * torch.linspace(-2, 2, 40)[:, None])
    along = torch.stack([toy.covariance(t * axis)[0].trace() for t in (0.5, 1.0, 2.0, 4.0, 8.0)])
    assert bool((along.diff() > 0).all())
    # As far out, but where no row was.
    across = inputs_of(1, seed=2)
    across = F.normalize(across - (across @ axis.T) * axis, dim=-1)
    assert float(toy.covariance(across)[0].trace()) > 1.5 * float(toy.covariance(axis)[0].trace())


def _predicted(toy: Logistic, x: Tensor) -> Tensor:
    model = nn.Module()
    model.autopeft = nn.ModuleDict({"laplace_lora": toy.module})
    return predictive(model, lambda: toy.logits({"x": x}))


def test_a_strong_prior_returns_the_probabilities_of_the_mean() -> None:
    toy, x = Logistic(), inputs_of(7, seed=4)
    mean = toy.logits({"x": x}).softmax(-1)
    assert torch.equal(_predicted(toy, x), toy.logits({"x": x})), "nothing is concluded yet"
    toy.conclude(inputs_of(12))
    uncertain = _predicted(toy, x).exp()
    assert float((uncertain - mean).abs().max()) > 0.02
    toy.module.posterior_precision.fill_(1e12)
    torch.testing.assert_close(_predicted(toy, x).exp(), mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(toy.logits({"x": x}).softmax(-1), mean)


def test_the_priors_precision_is_that_of_the_largest_marginal_likelihood() -> None:
    toy, x = Logistic(), inputs_of(12)
    toy.conclude(x)
    norm = sum(float(q.square().sum()) for q in (toy.pair.A, toy.pair.B))

    def evidence(p: float) -> float:
        volume = sum(
            torch.logdet(torch.eye(12).double() + toy.curvature(n).double() / p).item() for n in ("A", "B")
        )
        return -0.5 * p * norm - 0.5 * volume

    p = float(toy.module.posterior_precision)
    assert evidence(p) > max(evidence(0.99 * p), evidence(1.01 * p))
    assert evidence(p) > evidence(1.0) + 0.01
    toy.module.config = configured("laplace_lora", prior_precision=7.5).config
    toy.conclude(x)
    assert float(toy.module.posterior_precision) == pytest.approx(7.5)


def test_an_entry_that_no_row_reaches_predicts_with_its_mean() -> None:
    toy = Logistic()
    toy.module.scale = 0.0
    toy.conclude(inputs_of(12))
    assert toy.module.samples == 0


def test_rows_that_are_scored_together_are_refused() -> None:
    toy = Logistic()
    with toy.module.recording():
        scores = toy.logits({"x": inputs_of(4)})
        with pytest.raises(MethodError, match="2 for 4 rows"):
            toy.module.covariance(scores[:2] + scores[2:])
    assert toy.pair.seen == []


# On models


def _recipe(*items: dict[str, Any]) -> Recipe:
    attach_ = [{"laplace_lora": i} if "gate" not in i else i for i in items]
    return Recipe.from_dict({"name": "l", "layers": [{"attach": attach_}]})


def _attached(model: Any, *items: dict[str, Any]) -> Hybrid:
    hybrid = attach(model, _recipe(*(items or ({"rank": 2},))), seed=0)
    randomise(hybrid.root, std=0.3)
    return hybrid


def _batches(name: str, n: int = 4, pad: int = 0) -> list[Batch]:
    parts = [tiny_inputs(name, batch=2, pad=pad, seed=seed) for seed in range(n)]
    return [{**part, "labels": torch.tensor([i % 2, 1])} for i, part in enumerate(parts)]


def _concluded(model: Any, *items: dict[str, Any], name: str = "bert", pad: int = 0) -> Hybrid:
    hybrid = _attached(model, *items)
    for module in hybrid.modules.values():
        if isinstance(module, Concludes):
            module.conclude(_batches(name, pad=pad), LogitsObjective(model))
    return hybrid


def _explicit(model: Any, hybrid: Hybrid, entry: str = "laplace_lora") -> Tensor:
    """J·Σ·Jᵀ of the inputs of seed 7, from torch.func's Jacobians and dense inverses."""
    module: Any = hybrid.modules[entry]
    p, total = float(module.posterior_precision), 0.0
    for child in module.children_by_site():
        for name in ("A", "B"):
            factor = getattr(child, name)
            key = next(k for k, q in model.named_parameters() if q is factor)

            def of(value: Tensor, key: str = key) -> Tensor:
                inputs = tiny_inputs("bert", pad=2, seed=7)
                return torch.func.functional_call(model, {key: value}, kwargs=inputs).logits  # type: ignore[no-any-return]

            j = torch.func.jacrev(of)(factor.detach())
            h = dense(getattr(child, f"posterior_{name}")).double()
            flat = (j if name == "A" else j.mT).flatten(2).double()
            total = total + flat @ torch.linalg.inv(h + p * torch.eye(len(h))) @ flat.mT
    assert isinstance(total, Tensor)
    return total


GATED: dict[str, Any] = {"gate": [{"laplace_lora": {"rank": 2}}, {"serial_adapter": {"bottleneck": 4}}]}


@pytest.mark.parametrize("item", [{"rank": 2, "n_kfac": 3}, {"rank": 3, "sites": ["q", "down"]}, GATED])
def test_covariance_on_a_model_is_the_explicit_one(item: dict[str, Any]) -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2, seed=7)
    hybrid = _concluded(model, item)
    module: Any = hybrid.modules["laplace_lora"]
    with module.recording():
        got = module.covariance(model(**inputs).logits)
    expected = _explicit(model, hybrid)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=2e-3)
    assert bool((expected.diagonal(dim1=1, dim2=2) > 0.01).all())


def _integrated(mean: Tensor, covariance: Tensor) -> Tensor:
    """E softmax of two normal logits: the integral of a sigmoid over their difference."""
    centre = (mean[:, 1] - mean[:, 0]).double()
    spread = (covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]).double().sqrt()
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    second = (centre[:, None] + spread[:, None] * z).sigmoid() @ (-0.5 * z**2).softmax(0)
    return torch.stack([1 - second, second], dim=1)


def test_two_entries_add_their_covariances() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2, seed=7)
    hybrid = _concluded(model, {"rank": 2, "samples": 300_000}, {"rank": 3, "sites": ["down"]})
    names = list(hybrid.modules)
    assert len(names) == 2
    mean = logits(model, inputs).detach()
    both = sum(_explicit(model, hybrid, name) for name in names)
    got = predictive(model, lambda: logits(model, inputs)).exp()
    torch.testing.assert_close(got.double(), _integrated(mean, torch.as_tensor(both)), atol=4e-3, rtol=0)
    one = _integrated(mean, _explicit(model, hybrid, names[0]))
    assert float((got - one).abs().max()) > 0.01, "the second makes a difference"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_predictions_are_the_same_in_every_mode_and_leave_nothing(mode: Any) -> None:
    model = tiny_model("bert")
    _concluded(model)
    inputs = tiny_inputs("bert", pad=2)
    with torch.no_grad():
        first = predictive(model, lambda: logits(model, inputs))
    before, state = snapshot(model), torch.get_rng_state()
    with mode():
        again = predictive(model, lambda: logits(model, inputs))
    assert torch.equal(first, again)
    assert not again.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(again.exp().sum(-1), torch.ones(2))


def test_nothing_need_require_a_gradient() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    _concluded(model)
    expected = predictive(model, lambda: logits(model, inputs))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(predictive(model, lambda: logits(model, inputs)), expected)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "llama", "t5", "vit"])
def test_every_architecture_concludes_and_saves_what_it_learned(name: str, tmp_path: Any) -> None:
    model = tiny_model(name)
    inputs = tiny_inputs(name)
    run = lambda m: lambda: LogitsObjective(m).logits(inputs)[:, :3]  # noqa: E731
    hybrid = _attached(model)
    batches = _batches(name)
    before = snapshot(model)
    flags = [p.requires_grad for p in model.parameters()]
    module: Any = hybrid.modules["laplace_lora"]
    module.conclude(batches, LogitsObjective(model))
    assert module.samples == 1000
    after = snapshot(model)
    assert [k for k in before if not torch.equal(before[k], after[k]) and "posterior" not in k] == []
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    learned = [k for k in before if "posterior" in k and not torch.equal(before[k], after[k])]
    assert len(learned) == 8 * len(module.children_by_site()) + 1
    expected = predictive(model, run(model))
    mean = run(model)().log_softmax(-1)
    assert not torch.allclose(expected, mean, atol=1e-2)
    hybrid.save(tmp_path)
    fresh = tiny_model(name)
    load(fresh, tmp_path)
    torch.testing.assert_close(predictive(fresh, run(fresh)), expected, atol=1e-6, rtol=1e-6)
    assert hybrid.counts().deployed == sum(p.numel() for p in hybrid.root.parameters())
    copied = copy.deepcopy(model)
    torch.testing.assert_close(predictive(copied, run(copied)), expected, atol=1e-6, rtol=1e-6)


def test_padding_and_unread_positions_do_not_count() -> None:
    """The last layer's q and down matter at the first position only, all else of them is read by nobody."""
    items = {"rank": 2, "n_kfac": 64, "sites": ["q", "v", "down"]}
    bare, padded = (_concluded(tiny_model("bert"), items, pad=pad).modules["laplace_lora"] for pad in (0, 3))
    for one, other in zip(bare.children_by_site(), padded.children_by_site(), strict=True):  # type: ignore[operator]
        for name in ("posterior_A", "posterior_B"):
            h = dense(getattr(one, name))
            assert float(h.abs().max()) > 1e-6
            limit = 1e-4 * float(h.abs().max())
            torch.testing.assert_close(dense(getattr(other, name)), h, atol=limit, rtol=1e-3)
    children: Any = bare.children_by_site()  # type: ignore[operator]
    found = [int((c.posterior_A.large_values > 1e-4).sum()) for c in children[-3:]]
    assert found == [8, 32, 8], "of q and down one position of each of 8 rows, of v all"


def test_only_the_last_layer_is_uncertain_where_that_is_asked() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = _concluded(model, {"rank": 2, "sub": "last_layer"})
    buffers = [k for k, _ in hybrid.root.named_buffers()]
    assert {k.split(".")[2] for k in buffers if ".at." in k} == {"encoder-2-q", "encoder-2-v"}
    whole = _concluded(tiny_model("bert"))
    module, other = (h.modules["laplace_lora"] for h in (hybrid, whole))
    other.posterior_precision.copy_(module.posterior_precision)  # type: ignore[operator, arg-type]
    found = []
    for m, h in ((module, hybrid), (other, whole)):
        with m.recording():  # type: ignore[operator]
            found.append(m.covariance(logits(h.model, inputs)))  # type: ignore[operator]
    torch.testing.assert_close(*(logits(h.model, inputs) for h in (hybrid, whole)))
    assert bool((found[0].diagonal(dim1=1, dim2=2) < found[1].diagonal(dim1=1, dim2=2)).all())


def test_of_two_stacks_the_decoders_last_layer_is_the_last() -> None:
    hybrid = _attached(tiny_model("t5"), {"rank": 2, "sub": "last_layer"})
    keys = {k.split(".")[2] for k, _ in hybrid.root.named_buffers() if ".at." in k}
    assert keys == {"decoder-2-q", "decoder-2-v"}


def test_it_merges_with_the_mean_alone() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = _concluded(model)
    with pytest.raises(UsageError, match="laplace_lora cannot be folded"):
        hybrid.merge()
    hybrid.detach()
    hybrid = _concluded(model, {"rank": 2, "samples": 0})
    module: Any = hybrid.modules["laplace_lora"]
    assert module.samples == 0
    expected = logits(model, inputs)
    assert torch.equal(predictive(model, lambda: logits(model, inputs)), expected)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=3e-5, rtol=1e-4)


def test_with_an_ensemble_each_member_has_its_uncertainty() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    items = [{"laplace_lora": {"rank": 2}}, {"lora_dropout": {"rank": 2, "ensemble": 2, "sites": ["down"]}}]
    hybrid = attach(model, Recipe.from_dict({"name": "e", "layers": [{"attach": items}]}), seed=0)
    randomise(hybrid.root, std=0.3)
    laplace, dropout = hybrid.modules["laplace_lora"], hybrid.modules["lora_dropout"]
    laplace.conclude(_batches("bert"), LogitsObjective(model))  # type: ignore[operator]
    got = predictive(model, lambda: logits(model, inputs)).exp()
    dropout.members = 0  # type: ignore[assignment]
    single = []
    for member in range(2):
        dropout.choose(member)  # type: ignore[operator]
        single.append(predictive(model, lambda: logits(model, inputs)).exp())
    assert not torch.allclose(single[0], single[1], atol=1e-3)
    torch.testing.assert_close(got, torch.stack(single).mean(0))
