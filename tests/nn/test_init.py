"""How each brick starts: what its values are drawn from, as its source has it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import pytest
import torch
from support.laws import (
    HUNDREDTH,
    KAIMING,
    NORMAL,
    ONES,
    ZEROS,
    Law,
    constant,
    glorot,
    linear,
    near_identity,
    normal,
    starts,
    truncated,
    uniform,
    violations,
)
from torch import Tensor, nn

import autopeft.nn as bricks
from autopeft.spec import Site, TensorSpec

TENSORS = (TensorSpec("x.0.bias", (4,), "bias"), TensorSpec("x.1.weight", (3, 5), "weight"))
PAIR = {"A": KAIMING, "B": ZEROS}

# name → (the brick, the law of each of its tensors)
CASES: dict[str, tuple[Callable[[], nn.Module], Mapping[str, Law]]] = {
    "Bottleneck": (
        lambda: bricks.Bottleneck(100, 40),
        {"*.weight": normal(0.02), "*.bias": ZEROS},
    ),
    "Bottleneck-houlsby": (
        lambda: bricks.Bottleneck(100, 40, init="houlsby"),
        {"*.weight": truncated(1e-3), "*.bias": ZEROS},
    ),
    "Bottleneck-lora": (
        lambda: bricks.Bottleneck(100, 40, init="lora"),
        {"down.weight": KAIMING, "up.weight": ZEROS, "*.bias": ZEROS},
    ),
    "Bottleneck-glorot": (
        lambda: bricks.Bottleneck(100, 40, init="glorot"),
        {"*.weight": glorot(), "*.bias": ZEROS},
    ),
    "NormedBottleneck": (
        lambda: bricks.NormedBottleneck(100, 40),
        {
            "down.weight": normal(0.02),
            "up.weight": normal(0.02),
            "norm.weight": constant(1.0),
            "*.bias": ZEROS,
        },
    ),
    "TaskGenerator": (
        lambda: bricks.TaskGenerator(
            [Site("encoder", i, "ffn", "region", 40, 40) for i in range(30)],
            lambda site: bricks.bottleneck_shapes(40, 8),
            heads="stack",
            tasks=30,
        ),
        {
            **dict.fromkeys(("tasks", "layers.*"), NORMAL),
            "projectors.*.weight": normal(0.01),
            "heads.*.weight": normal(0.01),
            "norms.*.weight": constant(1.0),
            "*.bias": ZEROS,
        },
    ),
    "Down": (lambda: bricks.Down(100, 20), {"A": KAIMING}),
    "Down-normal": (lambda: bricks.Down(100, 20, std=0.02), {"A": normal(0.02)}),
    "JoinedPair": (lambda: bricks.JoinedPair(bricks.Down(100, 20), 60), {"B": ZEROS}),
    "LowRankPair": (lambda: bricks.LowRankPair(100, 60, 20), PAIR),
    "SettledPair": (lambda: _put_in(bricks.SettledPair(100, 60, 20, dropout=0.1, drop_path=0.1)), PAIR),
    "SettledAdapter": (
        lambda: _put_in(bricks.SettledAdapter(300, 1500, dropout=0.1, drop_path=0.1)),
        {"inner.down.weight": KAIMING, "inner.down.bias": linear(300), "inner.up.*": ZEROS},
    ),
    "LowRankPair-reset": (lambda: _reset(bricks.LowRankPair(100, 60, 20)), PAIR),
    "NestedPair": (
        lambda: bricks.NestedPair(100, 60, 20, dropout=0.0),
        {"A.*": KAIMING, "B.*": ZEROS},
    ),
    "UncertainPair": (
        lambda: bricks.UncertainPair(100, 60, 20, dropout=0.0, curvature_rank=3),
        {**PAIR, "posterior_*": ZEROS},
    ),
    "LowRankKronecker": (
        lambda: bricks.LowRankKronecker(4, 800, 400, 4),
        {"left": glorot(), "right": glorot()},
    ),
    "LowRankKronecker-gain": (
        lambda: bricks.LowRankKronecker(4, 800, 400, 4, gain=3.0),
        {"left": glorot(3.0), "right": glorot(3.0)},
    ),
    "PromptEncoder": (
        lambda: bricks.PromptEncoder(20, 100, 1500),
        {"embedding": NORMAL, "down.weight": linear(100), "down.bias": linear(100)},
    ),
    "PromptRows": (lambda: bricks.PromptRows(20, 100), {"rows": normal(0.02)}),
    "PromptRows-std": (lambda: bricks.PromptRows(20, 100, std=1.0), {"rows": NORMAL}),
    "PromptRows-mid": (
        lambda: bricks.PromptRows(20, 1500, mid=80),
        {"up.weight": linear(80), "up.bias": linear(80)},
    ),
    "PromptTable": (lambda: bricks.PromptTable(200, 100, "uniform"), {"table": uniform(0.5)}),
    "PromptTable-normal": (lambda: bricks.PromptTable(200, 100, "normal"), {"table": normal(0.02)}),
    "Fusion": (
        lambda: bricks.Fusion(400, 400),
        {
            "query.weight": normal(0.02),
            "key.weight": normal(0.02),
            "*.bias": ZEROS,
            "value.weight": near_identity(1e-6),
        },
    ),
    "Router": (lambda: bricks.Router(400, 8), {"weight": normal(0.02)}),
    "TensorDeltas": (lambda: bricks.TensorDeltas(TENSORS), {"values.*": ZEROS}),
    "GatedDeltas": (
        lambda: bricks.GatedDeltas(TENSORS, bricks.HardConcrete(), 5.0, grouped=True),
        {"values.*": ZEROS, "locations.*": constant(5.0), "shared.*": constant(5.0)},
    ),
    "SparseDelta": (lambda: bricks.SparseDelta(TENSORS, 7), {"values": ZEROS}),
    "KroneckerCurvature": (lambda: bricks.KroneckerCurvature(3, 9, 4), {"*": ZEROS}),
}
# These hold what they are given, or start as what they extend.
WITHOUT = {
    "Bottlenecks",
    "ChosenEntries",
    "GatedEntries",
    "JoinedPairs",
    "PerSite",
    "Prefixes",
    "PrunedPair",
    "PrunedPairs",
    "RankedEntries",
    "ScaledMaps",
    "ScaledPairs",
    "SearchedBiases",
    "SearchedEntries",
    "SettledStructure",
}


def _put_in(child: bricks.SettledPair | bricks.SettledAdapter) -> nn.Module:
    assert not child.there
    child.put_in()
    return child


def _reset(pair: bricks.LowRankPair) -> bricks.LowRankPair:
    nn.init.constant_(pair.A, 7.0)
    nn.init.constant_(pair.B, 7.0)
    pair.reset()
    return pair


@pytest.mark.parametrize("case", CASES)
def test_each_tensor_follows_its_law(case: str) -> None:
    build, laws = CASES[case]
    torch.manual_seed(0)
    assert starts(build(), laws) == []


def test_every_brick_has_a_row() -> None:
    modules = {
        n for n in bricks.__all__ if inspect.isclass(b := getattr(bricks, n)) and issubclass(b, nn.Module)
    }
    assert {case.partition("-")[0] for case in CASES} == modules - WITHOUT
    assert modules >= WITHOUT


def test_fastfood_draws_signs_a_permutation_and_a_normal() -> None:
    """z as long as the result, so that nothing of the permutation is lost."""
    fastfood = bricks.Fastfood(4096, 4096, seed=0, name="x")
    signs, places, gauss, scale = fastfood._frozen(torch.device("cpu"))
    assert signs.abs().eq(1).all()
    assert abs(float(signs.mean())) < 5 / 64
    assert torch.equal(places.long().sort().values, torch.arange(4096))
    assert float((places.long() == torch.arange(4096)).float().mean()) < 0.01
    # Rounded to bfloat16, values repeat; what is left of a normal is its mean, deviation and reach.
    assert {v.rpartition(" ")[2] for v in violations(NORMAL, [gauss.float()])} <= {"repeat"}
    assert scale == pytest.approx((4096 * float(gauss.double().square().sum())) ** -0.5)


# Mutations of a draw that the bounds have to find: (law, values that are not from it).
N = 20_000


def _uniform(bound: float) -> Tensor:
    return torch.empty(N).uniform_(-bound, bound)


WRONG: dict[str, tuple[Law, Callable[[], Tensor]]] = {
    "std-0.9": (normal(0.02), lambda: torch.randn(N) * 0.018),
    "std-1.1": (normal(0.02), lambda: torch.randn(N) * 0.022),
    "mean": (normal(0.02), lambda: torch.randn(N) * 0.02 + 0.002),
    "uniform-as-normal": (normal(0.02), lambda: _uniform(0.02 * 3**0.5)),
    "normal-as-uniform": (HUNDREDTH, lambda: torch.randn(N) * 0.01 / 3**0.5),
    "bound-0.95": (HUNDREDTH, lambda: _uniform(0.0095)),
    "bound-1.05": (HUNDREDTH, lambda: _uniform(0.0105)),
    "one-sided": (HUNDREDTH, lambda: _uniform(0.01).abs()),
    "other-fan": (KAIMING, lambda: _uniform(100**-0.5).view(100, 200)),
    "not-truncated": (truncated(1e-3), lambda: torch.randn(N) * 0.88e-3),
    "truncated-at-three": (
        truncated(1e-3),
        lambda: nn.init.trunc_normal_(torch.empty(N), std=1e-3, a=-3e-3, b=3e-3),
    ),
    "repeated-rows": (NORMAL, lambda: torch.randn(1, 2000).expand(10, -1)),
    "zeros": (NORMAL, lambda: torch.zeros(N)),
    "almost-zero": (ZEROS, lambda: torch.full((N,), 1e-12)),
    "almost-one": (ONES, lambda: torch.tensor([1.0, 1.0, 1 + 1e-6])),
    "other-gain": (glorot(2.0), lambda: glorot_drawn(1.9)),
    "0.1": (constant(0.1), lambda: torch.full((3,), 0.1001)),
}


def glorot_drawn(gain: float) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(100, 200), gain)


@pytest.mark.parametrize("case", WRONG)
def test_the_bounds_find_what_is_off(case: str) -> None:
    torch.manual_seed(1)
    law, draw = WRONG[case]
    assert violations(law, [draw()])


def test_the_bounds_hold_for_what_is_right_whatever_the_seed() -> None:
    for seed in range(40):
        torch.manual_seed(seed)
        assert violations(normal(0.02), [torch.randn(1500) * 0.02]) == []
        assert violations(uniform(0.3), [torch.empty(1500).uniform_(-0.3, 0.3)]) == []
        assert violations(glorot(2.0), [glorot_drawn(2.0)]) == []
        assert violations(KAIMING, [nn.init.kaiming_uniform_(torch.empty(30, 50), a=5**0.5)]) == []
        assert violations(truncated(1.0), [nn.init.trunc_normal_(torch.empty(1500))]) == []


def test_a_tensor_without_a_law_and_too_few_values_are_found_out() -> None:
    pair = bricks.LowRankPair(100, 60, 20)
    assert starts(pair, {"A": KAIMING}) == ["B: 0 laws fit"]
    assert starts(pair, {"*": ZEROS, "B": ZEROS})[0] == "B: 2 laws fit"
    assert "C: no such" in starts(pair, {**PAIR, "C": ZEROS})
    with pytest.raises(ValueError, match="too few"):
        violations(NORMAL, [torch.randn(100)])
