from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs
from support.training import encoded_task, tiny_bert
from torch import Tensor

from autopeft.counting import count
from autopeft.errors import DataError, MethodError
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training import TrainingPlan
from autopeft.training.loop import train

PLAN = TrainingPlan(steps=40, batch_size=8, seed=3, device="cpu")


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "dylora",
            "layers": [{"attach": [{"dylora": config}]}],
            "training": {"learning_rate": 1e-2, "weight_decay": 0.1},
        }
    )


@given(toy_specs, st.integers(1, 6), st.integers(1, 6))
def test_count_is_what_it_holds(spec: BackboneSpec, rank: int, deployed_rank: int) -> None:
    config = {"rank": max(rank, deployed_rank), "deployed_rank": deployed_rank}
    deployed, trained, held, held_trained = counted("dylora", spec, **config)
    assert (deployed, trained) == (held, held_trained)
    assert deployed * config["rank"] == trained * deployed_rank


def test_it_starts_as_a_lora_of_the_largest_rank() -> None:
    torch.manual_seed(4)
    lora, sites = build("lora", toy_spec(), rank=5)
    torch.manual_seed(4)
    module, _ = build("dylora", toy_spec(), rank=5)
    for site in sites:
        a, b = module[site].factors(5)
        assert torch.equal(a, lora[site].A)
        assert torch.equal(b, lora[site].B)


def test_ranks_are_nested_and_each_equals_a_lora_of_its_own() -> None:
    module, sites = build("dylora", toy_spec(), rank=5, alpha=6.0)
    randomise(module)
    site = sites[1]
    x, y = torch.randn(2, 3, site.in_features), torch.randn(2, 3, site.out_features)
    weight = torch.randn(site.out_features, site.in_features)
    for rank in range(1, 6):
        module.use(rank)
        a, b = module[site].factors(rank)
        if rank < 5:
            larger = module[site].factors(rank + 1)
            assert torch.equal(larger[0][:rank], a)
            assert torch.equal(larger[1][:, :rank], b)
        lora, _ = build("lora", toy_spec(), rank=rank, alpha=6.0)
        lora[site].hold(a, b)
        torch.testing.assert_close(module.delta(site, x, y, CALL), lora.delta(site, x, y, CALL))
        torch.testing.assert_close(
            module.merged(site, weight, None)[0], lora.merged(site, weight, None)[0], atol=1e-6, rtol=1e-6
        )
        # The gate replaces α/R: what is left of α/b is R/b.
        torch.testing.assert_close(module.delta(site, x, y, GATED) * 6 / 5, module.delta(site, x, y, CALL))
    for rank in (0, 6):
        with pytest.raises(MethodError, match="ranks 1 to 5"):
            module.use(rank)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_a_lora_of_the_drawn_rank(frozen: bool) -> None:
    module, sites = build("dylora", toy_spec(), rank=4, alpha=6.0, frozen=frozen)
    randomise(module)
    site = sites[0]
    lora, _ = build("lora", toy_spec(), rank=3, alpha=6.0)
    lora[site].hold(*module[site].factors(3))
    x, y = torch.randn(5, site.in_features), torch.randn(5, site.out_features)
    module.drawn = 3
    for m in (module, lora):
        m.delta(site, x, y, CALL).sin().sum().backward()
    for i in range(4):
        trained = i == 2 if frozen else i < 3
        row, column = module[site].A[i].grad, module[site].B[i].grad
        if trained:
            torch.testing.assert_close(row, lora[site].A.grad[i])
            torch.testing.assert_close(column, lora[site].B.grad[:, i])
        else:
            assert row is None
            assert column is None


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, set[int]]:
    """Which rows and columns changed, for each factor of each site."""
    found: dict[str, set[int]] = {}
    for key, value in after.items():
        factor, _, number = key.rpartition(".")
        found.setdefault(factor, set())
        if not torch.equal(before[key], value):
            found[factor].add(int(number) + 1)
    return found


@pytest.mark.parametrize("frozen", [True, False])
def test_a_step_changes_one_rank_at_all_sites_or_all_up_to_it(frozen: bool) -> None:
    model = tiny_bert()
    with attach(model, recipe(rank=3, frozen=frozen), seed=1) as hybrid:
        module: Any = hybrid.modules["dylora"]
        states = [{k: v.clone() for k, v in module.state_dict().items()}]
        on_step = lambda step, loss: states.append({k: v.clone() for k, v in module.state_dict().items()})  # noqa: E731
        train(hybrid, encoded_task(), PLAN, on_step=on_step)
    drawn = []
    for before, after in itertools.pairwise(states):
        changed = _changed(before, after)
        (ranks,) = {frozenset(v) for k, v in changed.items() if k.endswith(".B")}
        drawn.append(max(ranks))
        assert ranks == ({drawn[-1]} if frozen else set(range(1, drawn[-1] + 1)))
        # A row whose column is zero still has no gradient, but weight decay.
        assert all(v == ranks for v in changed.values())
    assert set(drawn) == {1, 2, 3}


def test_draws_follow_the_distribution_and_the_global_generator() -> None:
    def draws(n: int, **config: Any) -> list[int]:
        module, _ = build("dylora", toy_spec(layers=1), rank=4, **config)
        torch.manual_seed(0)
        found = []
        for step in range(n):
            module.before_step(step, n)
            found.append(module.drawn)
            module.after_step(step, n)
            assert module.drawn is None
        return found

    assert draws(20) == draws(20)
    uniform, geometric = draws(4000), draws(4000, sampling="geometric", p=0.5)
    for rank in range(1, 5):
        assert uniform.count(rank) / 4000 == pytest.approx(1 / 4, abs=0.03)
        assert geometric.count(rank) / 4000 == pytest.approx(0.5**rank / (1 - 0.5**4), abs=0.03)


def test_evaluation_is_at_the_deployed_rank_while_a_step_trains_another() -> None:
    module, sites = build("dylora", toy_spec(), rank=4, deployed_rank=2)
    randomise(module)
    x, y = torch.randn(3, sites[0].in_features), torch.randn(3, sites[0].out_features)
    deployed = module.eval().delta(sites[0], x, y, CALL)
    module.drawn = 4
    assert torch.equal(module.delta(sites[0], x, y, CALL), deployed)
    assert not torch.allclose(module.train().delta(sites[0], x, y, CALL), deployed)
    module.after_step(0, 1)
    assert torch.equal(module.delta(sites[0], x, y, CALL), deployed)


def test_the_deployed_form_is_a_lora_that_trains_and_has_the_lower_ranks() -> None:
    module, sites = build("dylora", toy_spec(layers=1), rank=4, deployed_rank=3)
    randomise(module)
    x, y = torch.randn(3, sites[0].in_features), torch.randn(3, sites[0].out_features)
    before = [module.delta(sites[0], x, y, CALL)]
    module.use(2)
    before.append(module.delta(sites[0], x, y, CALL))
    module.use(3)
    module.deploy()
    lora, _ = build("lora", toy_spec(layers=1), rank=3)
    assert {k: v.shape for k, v in module.state_dict().items()} == {
        k: v.shape for k, v in lora.state_dict().items()
    }
    module.before_step(0, 1)
    assert module.drawn is None
    assert torch.equal(module.train().delta(sites[0], x, y, CALL), before[0])
    module.use(2)
    torch.testing.assert_close(module.delta(sites[0], x, y, CALL), before[1])
    with pytest.raises(MethodError, match="ranks 1 to 3"):
        module.use(4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_any_rank_is_saved_and_loaded_as_such(rank: int, tmp_path: Path) -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe(rank=4, deployed_rank=2), seed=0)
    randomise(hybrid.root)
    module: Any = hybrid.modules["dylora"]
    module.use(rank)
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    assert load_file(tmp_path / "weights.safetensors")["encoder.0.q.dylora.A"].shape == (rank, 32)
    fresh = tiny_model("bert")
    again = load(fresh, tmp_path)
    torch.testing.assert_close(logits(fresh, inputs), expected)
    assert again.counts().deployed == hybrid.counts().deployed == rank * 6 * 64
    assert count(hybrid.recipe, hybrid.spec).deployed == 2 * 6 * 64


def test_a_file_of_a_larger_rank_or_of_none_is_refused(tmp_path: Path) -> None:
    for held, named in ((4, 3), (1, 1)):
        hybrid = attach(tiny_model("bert"), recipe(rank=held), seed=0)
        hybrid.save(tmp_path)
        text = (tmp_path / "recipe.yaml").read_text()
        if held != named:
            (tmp_path / "recipe.yaml").write_text(text.replace(f"rank: {held}", f"rank: {named}"))
        else:
            _empty(tmp_path / "weights.safetensors")
        with pytest.raises(DataError, match="does not fit"):
            load(tiny_model("bert"), tmp_path)


def _empty(file: Path) -> None:
    from safetensors.torch import save_file

    state = load_file(file)
    cut = {k: v[:0] if k.endswith(".A") else v[:, :0] if k.endswith(".B") else v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in cut.items()}, file)


def test_a_deployed_rank_above_the_largest_is_an_error() -> None:
    with pytest.raises(ValidationError, match="deployed_rank=5 is above rank=4"):
        configured("dylora", rank=4, deployed_rank=5)
