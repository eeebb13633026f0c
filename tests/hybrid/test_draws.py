"""Draws from a seed are a thread's own and those of `torch.manual_seed`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from support.cases import ON_ENCODERS, recipe_of
from support.tiny import tiny_model
from torch import Tensor, nn

from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.draws import seeded
from autopeft.recipe import Recipe

DRAWS: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(5, 3),
    "randn": lambda: torch.randn(33),
    "randn of a dtype": lambda: torch.randn(7, dtype=torch.float64),
    "randint": lambda: torch.randint(3, 90, (20,)),
    "randperm": lambda: torch.randperm(50),
    "rand_like": lambda: torch.rand_like(torch.empty(4, 4)),
    "uniform_": lambda: torch.empty(40).uniform_(-2, 3),
    "normal_": lambda: torch.empty(40).normal_(1, 3),
    "bernoulli": lambda: torch.bernoulli(torch.full((30,), 0.4)),
    "multinomial": lambda: torch.multinomial(torch.ones(30), 9),
    "exponential_": lambda: torch.empty(9).exponential_(),
    "kaiming": lambda: nn.init.kaiming_uniform_(torch.empty(8, 8)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(8, 8), std=0.1),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(8, 8)),
    "a linear map": lambda: nn.Linear(6, 5).weight.detach(),
    "an embedding": lambda: nn.Embedding(6, 5).weight.detach(),
}


def values(hybrid: Hybrid) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, module in hybrid.modules.items()
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_draws_what_torch_draws_from_it_and_moves_nothing(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = [DRAWS[name](), DRAWS[name]()]
    before = torch.get_rng_state()
    with seeded(11):
        found = [DRAWS[name](), DRAWS[name]()]
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(found[0], found[1])


def test_without_a_seed_the_global_generator_draws() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        with seeded(None):
            assert torch.equal(torch.rand(3), expected)


def test_a_generator_of_the_caller_s_is_left_in_charge() -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    with seeded(11):
        assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(5)), expected)


@pytest.mark.parametrize("case", ON_ENCODERS)
def test_what_a_method_is_made_with_is_what_the_global_generator_gives(case: str) -> None:
    """So files and scores of before keep their meaning."""
    recipe = recipe_of(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = values(attach(tiny_model("bert"), recipe))
    found = values(attach(tiny_model("bert"), recipe, seed=3))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_threads_that_attach_at_once_draw_what_each_would_alone() -> None:
    recipe = Recipe.from_dict(
        {"name": "x", "layers": [{"attach": [{"lora": {"rank": 4}}, "serial_adapter"]}]}
    )
    models = [tiny_model("bert") for _ in range(8)]
    expected = [values(attach(tiny_model("bert"), recipe, seed=seed)) for seed in range(8)]
    found: list[dict[str, Tensor]] = [{} for _ in models]
    start = threading.Barrier(len(models))

    def work(number: int) -> None:
        start.wait()
        found[number] = values(attach(models[number], recipe, seed=number))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, alone in zip(found, expected, strict=True):
        assert mine.keys() == alone.keys()
        assert all(torch.equal(mine[key], alone[key]) for key in alone)
