"""A method of another package is exported, served and narrowed like a built-in one, by what it declares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from peft import PeftModel
from pydantic import Field
from support.registries import keep
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor, nn

from autopeft.backbones import spec_of_model
from autopeft.counting import Budget
from autopeft.export.lora_weights import lora_weights
from autopeft.export.peft_format import NotExpressible, to_peft
from autopeft.graph import SERVED, build_graph, unservable, unservable_entries
from autopeft.hybrid import Hybrid, attach
from autopeft.method import (
    Call,
    MethodConfig,
    Narrow,
    ParameterCount,
    PeftFormat,
    Slot,
    Stored,
    Traits,
    narrowed,
    register,
    registry,
)
from autopeft.nn import PerSite, stored_prompt
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Resources
from autopeft.resources.features import Shape, features_of
from autopeft.search.space.candidate import ResourceBudget, candidate
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec, Site

ON_MAPS = Traits(ways=frozenset({"hook"}), sites=("q", "v"), default_sites=("q", "v"), mergeable=True)


class Pair(nn.Module):
    def __init__(self, site: Site, rank: int) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(site.in_features, rank))
        self.out = nn.Parameter(torch.zeros(rank, site.out_features))


class Pairs(PerSite[Pair]):
    """δ = 3·(x·U)·V."""

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return 3 * (x @ self[site].into) @ self[site].out

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + 3 * (self[site].into @ self[site].out).T, bias

    def as_lora(self, site: Site) -> tuple[Tensor, Tensor, float]:
        return self[site].into.T, self[site].out.T, 3.0


class TwoFactors:
    traits = ON_MAPS
    size_field = "width"
    peft = PeftFormat("lora")
    narrow: ClassVar[Narrow] = {"width": {"into": (1,), "out": (0,)}}

    class Config(MethodConfig):
        width: int = Field(default=2, ge=1)
        twice: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.twice:
            self.peft = PeftFormat("lora", "peft has one change of a map, and this one has two (`twice`)")

    @property
    def change_rank(self) -> int:
        return self.config.width

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self.config.width * (site.in_features + site.out_features) for site in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return Pairs({site.key: Pair(site, self.config.width) for site in sites})


class Factors(nn.Module):
    """y·exp(v) at each site."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self.logs = nn.ParameterDict({site.key: torch.zeros(site.out_features) for site in sites})

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return (self.as_ia3(site) - 1) * y

    def as_ia3(self, site: Site) -> Tensor:
        return self.logs[site.key].exp()


class Scaled:
    traits = Traits(ways=frozenset({"hook"}), sites=("k", "v"), default_sites=("k", "v"))
    Config = MethodConfig
    peft = PeftFormat("ia3")

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(site.out_features for site in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return Factors(sites)


class Rows(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(length, width))

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(len(self.rows)),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return self.rows[None]


class Prompt:
    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        identity=False,
        gateable=False,
    )
    size_field = "rows"
    peft = PeftFormat("prompt")

    class Config(MethodConfig):
        rows: int = Field(default=3, ge=1)

    def __init__(self, config: Config) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self.config.rows * sites[0].out_features
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return Rows(self.config.rows, sites[0].out_features)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    keep(monkeypatch, registry.REGISTRY)
    for name, cls in {"two_factors": TwoFactors, "scaled": Scaled, "first_rows": Prompt}.items():
        register(name)(cls)
    return


def recipe_of(item: Any) -> Recipe:
    name = item if isinstance(item, str) else next(iter(item))
    where = {"model": [item]} if name == "first_rows" else {"layers": [{"attach": [item]}]}
    return Recipe.from_dict({"name": "x", **where})


def trained(arch: str, item: Any) -> Hybrid:
    hybrid = attach(tiny_model(arch), recipe_of(item), seed=0)
    randomise(hybrid.root)
    return hybrid


@pytest.mark.parametrize(
    ("arch", "item"),
    [
        ("bert", "two_factors"),
        ("llama", {"two_factors": {"width": 3}}),
        ("bert", "scaled"),
        ("llama", "scaled"),
        ("llama", "first_rows"),
    ],
)
def test_peft_reads_it(arch: str, item: Any, tmp_path: Path) -> None:
    hybrid = trained(arch, item)
    assert unservable(hybrid.graph, "peft", head=bool(hybrid.head())) is None
    inputs = tiny_inputs(arch)
    ours = logits(hybrid.model, inputs)
    theirs = PeftModel.from_pretrained(tiny_model(arch), to_peft(hybrid, tmp_path)).eval()(**inputs).logits
    torch.testing.assert_close(theirs[:, -ours.shape[1] :], ours, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, logits(tiny_model(arch), inputs))


def test_it_is_found_servable_in_every_way() -> None:
    hybrid = trained("llama", "two_factors")
    assert {way: unservable(hybrid.graph, way, head=False) for way in SERVED} == dict.fromkeys(SERVED)
    assert lora_weights(hybrid).exact
    assert lora_weights(hybrid).rank == 2
    mixed = Recipe.from_dict({"layers": [{"attach": ["two_factors", "scaled", "serial_adapter"]}]})
    spec, _ = spec_of_model(tiny_model("llama"))
    found = {way: unservable_entries(build_graph(mixed, spec), way) for way in SERVED}
    assert found == {"peft": 2, "merged": 2, "vllm": 2}


def test_a_configuration_can_be_left_out(tmp_path: Path) -> None:
    hybrid = trained("llama", {"two_factors": {"twice": True}})
    with pytest.raises(NotExpressible, match="this one has two"):
        to_peft(hybrid, tmp_path / "out")


def test_a_search_for_peft_takes_it_where_there_is_no_other() -> None:
    space = """\
autopeft: 2
name: s
layers:
  - at: all
    attach: [{choice: [serial_adapter, {two_factors: {width: {choice: [1, 4]}}}]}]
training: {learning_rate: 1.0e-3}
"""
    bound = Space.from_yaml(space).bind(spec_of_model(tiny_model("llama"))[0])
    limits = Limits(serve="peft")
    budget = ResourceBudget(
        Budget.parse("90%").upper,
        within=limits,
        predict=lambda graph: Resources(unservable=unservable(graph, "peft", head=False) or ""),
    )
    (choice,) = (p for p in bound.parameters if "serial_adapter" in map(str, p.choices))
    for value in choice.choices:
        found = candidate(bound, {**bound.middle(), choice.name: value}, budget)
        assert {entry.method for entry in found.recipe.entries()} == {"two_factors"}


def test_a_forecast_counts_the_rows_of_its_prompt() -> None:
    spec, _ = spec_of_model(tiny_model("llama"))
    tokens = {
        n: features_of(build_graph(recipe_of({"first_rows": {"rows": n}}), spec), Shape(4, 10, 4))[
            "embeddings"
        ]
        for n in (1, 5)
    }
    assert tokens == {1: pytest.approx(1.1), 5: pytest.approx(1.5)}


def test_a_prompt_starts_from_its_rows() -> None:
    rows = torch.randn(3, 8)
    assert torch.equal(stored_prompt(Stored("a", "x", "first_rows", {"rows": rows}), 3, 8), rows)


def test_a_trained_module_of_it_is_narrowed() -> None:
    large, small = (trained("llama", {"two_factors": {"width": n}}) for n in (5, 2))
    entry = small.graph.entries["two_factors"]
    cut = narrowed(
        large.graph.entries["two_factors"].method,
        entry.method.config,
        large.modules["two_factors"].state_dict(),
    )
    small.modules["two_factors"].load_state_dict(cut)
    for pair in large.modules["two_factors"].children_by_site():  # type: ignore[operator]
        pair.out.data[2:] = 0
    inputs = tiny_inputs("llama")
    torch.testing.assert_close(logits(small.model, inputs), logits(large.model, inputs))
    assert sum(t.numel() for t in cut.values()) == small.counts().deployed
