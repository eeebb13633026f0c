"""A composition declares itself in one file: nothing else has to know it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from support.registries import keep
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn

from autopeft.backbones import spec_of_model
from autopeft.cli import main
from autopeft.composition import (
    Child,
    ChildSpec,
    CompositionOptions,
    CompositionTraits,
    MergingChild,
    NoOptions,
    Sum,
    added,
    composition_names,
    default_options,
    get_composition,
    is_composition,
    register,
)
from autopeft.composition import registry as compositions
from autopeft.counting import count
from autopeft.errors import CompositionError, MethodError, RecipeError
from autopeft.graph import build_graph, draw_svg, draw_text, hash_of, parts_of
from autopeft.hybrid import attach, load
from autopeft.injection.rows import last_layer_is_rowwise
from autopeft.method import Call, MethodConfig, ParameterCount, Traits
from autopeft.method import register as register_method
from autopeft.method import registry as methods
from autopeft.recipe import Recipe
from autopeft.search.space.space import Space
from autopeft.spec import Site
from autopeft.training import TrainingPlan, train


class BlendOptions(CompositionOptions):
    start: float = Field(default=1.0, gt=0, description="the scale before training")


class Blend(nn.Module):
    """δ = s·Σ δᵢ with one trained s."""

    kind: ClassVar[str]
    summary: ClassVar[str] = "the sum of its children, scaled by one trained number"
    traits: ClassVar[CompositionTraits] = CompositionTraits(
        ordered=True, mergeable=True, rowwise=True, copies=True
    )
    Options = BlendOptions

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))
        self.steps: list[tuple[int, int]] = []

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        if any(c.ways != {"hook"} for c in children):
            raise CompositionError("A blend holds modules on activations.")

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        return ParameterCount(1, 1)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> Blend:
        return cls(options["start"])

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        return self.scale * Sum().delta(site, children, x, y, call)

    def weight(self, target: Any, children: Any, original: Tensor, current: Tensor) -> Tensor:
        raise CompositionError("A blend holds no weight methods.")

    def key_value(self, site: Site, children: Any, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        raise CompositionError("A blend holds no prefixes.")

    def merged(
        self, site: Site, children: Sequence[MergingChild], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        new, new_bias = added(children, weight, bias)
        if bias is not None and new_bias is not None:
            new_bias = bias + self.scale * (new_bias - bias)
        return weight + self.scale * (new - weight), new_bias

    def before_step(self, step: int, total: int) -> None:
        self.steps.append((step, total))


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, methods.REGISTRY, compositions.REGISTRY)
    monkeypatch.setattr(methods, "RESERVED", set(methods.RESERVED))
    monkeypatch.setattr(compositions, "_DEFAULTS", dict(compositions._DEFAULTS))


@pytest.fixture
def blend() -> type[Blend]:
    return register("blend")(Blend)


YAML = """\
autopeft: 2
name: blended
layers:
  - at: all
    attach:
      - blend:
          children: [{lora: {rank: 2}}, {ia3: {sites: [q, v]}}]
          start: 0.5
        as: mix
"""


def test_it_is_read_counted_attached_trained_merged_saved_and_drawn(
    blend: type[Blend], tmp_path: Path
) -> None:
    recipe = Recipe.from_yaml(YAML)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert "start: 0.5" in recipe.to_yaml()
    model = tiny_bert()
    spec, layout = spec_of_model(model)
    graph = build_graph(recipe, spec)
    assert hash_of(parts_of(spec).of(recipe)) == graph.hash()
    assert recipe.brief == "lora + ia3"
    assert "blend(lora[rank 2], ia3)" in draw_text(graph)
    drawn = draw_svg(graph)
    assert "1. lora · rank 2" in drawn
    assert "2. ia3" in drawn
    assert last_layer_is_rowwise(graph, layout.stacks[0])

    hybrid = attach(model, recipe, seed=0)
    node: Any = hybrid.modules["mix"]
    assert isinstance(node, blend)
    held = sum(p.numel() for p in hybrid.root.parameters())
    assert graph.parameter_count().deployed == held == count(graph, spec, head=0).deployed
    train(hybrid, encoded_task(), TrainingPlan(steps=3, batch_size=4, seed=0))
    assert float(node.scale.detach()) != 0.5
    assert node.steps == [(0, 3), (1, 3), (2, 3)]

    randomise(hybrid.root)
    model.eval()
    inputs = tiny_inputs("bert")
    expected = logits(model, inputs)
    hybrid.save(tmp_path / "saved")
    again = tiny_bert().eval()
    load(again, tmp_path / "saved")
    torch.testing.assert_close(logits(again, inputs), expected)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=3e-5, rtol=1e-4)


def test_copies_and_order_are_as_declared(blend: type[Blend]) -> None:
    def graph_of(*children: Any, **beside: Any) -> Any:
        tree = {"layers": [{"attach": [{"blend": {"children": list(children), **beside}}]}]}
        spec, recipe = spec_of_model(tiny_model("bert"))[0], Recipe.from_dict(tree)
        graph = build_graph(recipe, spec)
        assert hash_of(parts_of(spec).of(recipe)) == graph.hash()
        return graph

    assert list(graph_of("lora", copies=3).entries) == ["lora", "lora_2", "lora_3"]
    assert graph_of("lora", "ia3").hash() != graph_of("ia3", "lora").hash()
    with pytest.raises(RecipeError, match="'copies' is for a blend with one child"):
        graph_of("lora", "ia3", copies=2)
    with pytest.raises(RecipeError, match="Did you mean 'start'"):
        graph_of("lora", stat=1.0)


def test_commands_and_search_spaces_know_it(blend: type[Blend], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert ", ".join(composition_names()) in " ".join(capsys.readouterr().out.split())
    assert main(["methods", "blend"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "blend — a composition: the sum of its children, scaled by one trained number" in said
    assert "start: …" in said
    assert "the scale before training" in said
    space = Space.from_yaml(
        "autopeft: 2\nname: s\nlayers: [{attach: [{blend: [{lora: {rank: {choice: [0, 2]}}}, ia3]}]}]\n",
        "s.yaml",
    ).bind(spec_of_model(tiny_model("bert"))[0])
    (parameter,) = space.parameters
    assert parameter.name == "lora.rank"
    recipe = space.materialize({"lora.rank": 0})
    assert [e.method for e in recipe.entries()] == ["ia3"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"merged": None}, "merged"),
        ({"delta": lambda self, site, children, x, y: y}, r"called as `delta\(site, children, x, y, call\)"),
        ({"before_steps": lambda self, step, total: None}, "Did you mean 'before_step'"),
        ({"after_step": lambda self: None}, r"called as `after_step\(step, total\)`"),
        ({"summary": lambda self: ""}, "read as a value"),
        ({"Options": type("Needy", (CompositionOptions,), {"__annotations__": {"size": int}})}, r"\(size\)"),
    ],
)
def test_what_breaks_the_contract_is_refused(body: dict[str, Any], message: str) -> None:
    broken = type("Broken", (Blend,), body)
    if "before_steps" in body:
        broken = type("Broken", (Bare,), body)
    with pytest.raises(CompositionError, match=message):
        register("broken")(broken)
    assert not is_composition("broken")


class Bare(nn.Module):
    """What every composition has, and nothing more."""

    summary = "nothing"
    traits = CompositionTraits()
    Options = NoOptions
    check = Blend.check
    parameter_count = Blend.parameter_count
    build = Blend.build
    delta = Blend.delta
    weight = Blend.weight
    key_value = Blend.key_value


def test_mergeable_asks_for_the_fold() -> None:
    register("bare")(type("Bare2", (Bare,), {}))
    with pytest.raises(CompositionError, match="lacks merged"):
        register("folded")(type("Folded", (Bare,), {"traits": CompositionTraits(mergeable=True)}))
    with pytest.raises(CompositionError, match="lacks summary"):
        register("mute")(type("Mute", (nn.Module,), {k: v for k, v in vars(Bare).items() if k != "summary"}))


@pytest.mark.parametrize("name", ["lora", "head", "Camel", "two words", "children", "add_module"])
def test_names_that_cannot_be_taken(name: str) -> None:
    with pytest.raises(CompositionError, match=name):
        register(name)(Blend)


def test_names_are_taken_once_and_kept_from_methods(blend: type[Blend]) -> None:
    body = {
        "traits": Traits(ways=frozenset({"hook"})),
        "Config": MethodConfig,
        "parameter_count": lambda self, sites, spec: None,
        "build": lambda self, sites, spec: None,
    }
    for name in ("blend", "gate"):
        with pytest.raises(MethodError, match="reserved for a composition"):
            register_method(name)(type("Made", (), body))
    with pytest.raises(CompositionError, match="taken by"):
        register("blend")(type("Other", (Blend,), {}))
    with pytest.raises(CompositionError, match="Did you mean 'blend'"):
        get_composition("blnd")


def test_defaults_are_handed_out_as_copies() -> None:
    default_options("gate")["masked"] = False
    assert default_options("gate") == {"masked": True}
