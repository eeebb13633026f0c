"""The search: what it finds on planted problems, and its thresholds."""

from __future__ import annotations

import pytest
import torch
from autopeft.methods.reparameterized.dynamic_rank.autolora import AutoLoRAModule, surviving
from hypothesis import given
from hypothesis import strategies as st
from support.bilevel import Loss, ToyStep
from support.toy import CALL, build, toy_spec
from torch import Tensor
from torch.nn.functional import mse_loss


def planted(rank: int, seed: int) -> tuple[AutoLoRAModule, ToyStep, set[int]]:
    """y = T·x + noise with T of this rank, and eight orthonormal rows of A, `rank` of which span T's inputs;
    the module, the problem and the places of those rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    module, sites = build(
        "autolora", toy_spec(layers=1, hidden=12), rank=8, sites=("q",), selection_learning_rate=0.01
    )
    site, width = sites[0], 12
    module.double()
    rows = torch.linalg.qr(normal(width, width))[0]
    target = torch.linalg.qr(normal(width, rank))[0] @ rows[:rank]
    order = torch.randperm(8, generator=generator)
    with torch.no_grad():
        module[site].A.copy_(rows[order])

    def rows_of_data() -> tuple[Tensor, Tensor]:
        x = normal(400, width)
        return x, x @ target.T + 0.1 * normal(400, width)

    first, second = rows_of_data(), rows_of_data()
    parameters = [p for group in module.parameter_groups() for p in group["params"]]
    step = ToyStep(
        parameters,
        [1e-2] * 2,
        lambda: mse_loss(module.delta(site, *first, CALL), first[1]),
        lambda: mse_loss(module.delta(site, *second, CALL), second[1]),
    )
    return module, step, {i for i, row in enumerate(order.tolist()) if row < rank}


def search(module: AutoLoRAModule, step: ToyStep, steps: int) -> None:
    module.begin()
    optimizer = torch.optim.AdamW(step.parameters, lr=1e-2)
    for _ in range(steps):
        module.select(step)
        assert all(c.grad is None for c in module.selections())
        for parameter, gradient in zip(step.parameters, step.lower(step.parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rank", [2, 4, 6])
def test_a_planted_rank_is_found(rank: int, seed: int) -> None:
    module, step, useful = planted(rank, seed)
    search(module, step, 60)
    (found,) = module.ranks().values()
    assert abs(found - rank) <= 1
    (selection,) = module.selections()
    best = selection.detach().topk(rank).indices
    assert set(best.tolist()) == useful


def test_a_symmetric_problem_keeps_the_weights_equal() -> None:
    module, step, _ = planted(4, 0)
    pair = module.children_by_site()[0]
    with torch.no_grad():
        pair.A.copy_(pair.A[:1].expand(8, -1).clone())
    search(module, step, 40)
    (selection,) = module.selections()
    torch.testing.assert_close(selection.softmax(0), torch.full((8,), 1 / 8, dtype=torch.float64))
    assert list(module.ranks().values()) == [8]
    assert float(pair.B.detach().abs().max()) > 0.1


@pytest.mark.parametrize("upper_reads_training_rows", [False, True])
def test_a_term_that_fits_noise_of_the_training_rows_loses_weight_on_the_others(
    upper_reads_training_rows: bool,
) -> None:
    module, step, _ = planted(1, 3)
    pair = module.children_by_site()[0]
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(2, 9, 12, generator=generator, dtype=torch.float64) for _ in range(2)]

    def loss_on(rows: Tensor) -> Loss:
        return lambda: mse_loss(module.scale * pair(rows[0]), rows[1])

    u, s, v = torch.linalg.svd(torch.linalg.lstsq(data[0][0], data[0][1]).solution.T)
    with torch.no_grad():
        pair.A[0], pair.B[:, 0] = v[0], s[0] * u[:, 0]
    step.losses = {"lower": loss_on(data[0]), "upper": loss_on(data[0 if upper_reads_training_rows else 1])}
    step.rates = [1e-6, 1e-6]
    module.begin()
    for _ in range(5):
        module.select(step)
    weight = module.selections()[0].softmax(0)[0]
    assert bool(weight > 1 / 8) == upper_reads_training_rows


# Thresholds
# ---------------------------------------------------------------------------------------------------


def test_terms_stay_whose_weight_is_at_least_the_mean() -> None:
    c = torch.tensor([3.0, 1.0, 0.9, 0.0])
    assert surviving(c).tolist() == [True, False, False, False]
    # Between the mean of c (1.225) and the logarithm of the mean exponential (1.9).
    c = torch.tensor([3.0, 1.4, 0.5, 0.0])
    assert surviving(c).tolist() == [True, False, False, False]
    assert surviving(c, reference=True).tolist() == [True, True, False, False]
    assert surviving(torch.tensor([2.0, 2.0, -1.0])).tolist() == [True, True, False]


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12), st.booleans())
def test_at_least_the_largest_stays(values: list[float], reference: bool) -> None:
    c = torch.tensor(values)
    assert bool(surviving(c, reference=reference)[c.argmax()])


@given(st.integers(1, 300), st.floats(-20, 20, width=32), st.booleans())
def test_equal_weights_keep_all(rank: int, value: float, reference: bool) -> None:
    assert bool(surviving(torch.full((rank,), value)).all())
    noise = 1e-6 * torch.randn(rank, generator=torch.Generator().manual_seed(rank))
    assert bool(surviving(1 + noise, reference=reference).all())


def test_weights_apart_by_more_than_rounding_do_not() -> None:
    assert surviving(torch.tensor([1.0, 1.0, 0.999])).tolist() == [True, True, False]


def test_the_config_chooses_the_threshold() -> None:
    for reference, rank in ((False, 1), (True, 2)):
        module, _ = build("autolora", toy_spec(layers=1), rank=4, reference_threshold=reference)
        with torch.no_grad():
            for selection in module.selections():
                selection.copy_(torch.tensor([3.0, 1.4, 0.5, 0.0]))
        assert set(module.ranks().values()) == {rank}
        module.restart()
        assert set(module.ranks().values()) == {rank}


def test_the_module_finds_its_ranks_with_the_threshold_of_its_config() -> None:
    for reference, rank in ((False, 1), (True, 2)):
        module, _ = build("autolora", toy_spec(layers=1), rank=3, sites=("q",), reference_threshold=reference)
        for selection in module.selections():
            selection.data = torch.tensor([1.0, 0.0, 0.55])
        assert set(module.ranks().values()) == {rank}
        module.restart()
        assert {len(pair.A) for pair in module.children_by_site()} == {rank}
