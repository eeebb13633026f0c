from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from support.cases import ON_ENCODERS, recipe_of
from support.registries import keep
from support.tiny import tiny_model
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.hybrid import attach
from autopeft.method import (
    MEMBERS,
    MethodConfig,
    ParameterCount,
    PeftFormat,
    Traits,
    check_module,
    lifecycle,
    members_table,
    modules,
    register,
    registry,
)
from autopeft.recipe import Recipe


class Plain(nn.Module):
    """A module on activations that does nothing wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def side(self, site: Any) -> str:
        return "output"

    def delta(self, site: Any, x: Tensor, y: Tensor, call: Any) -> Tensor:
        return self.shift.expand_as(y)


def _with(**body: Any) -> nn.Module:
    made: nn.Module = type("Made", (Plain,), body)()
    return made


def _method(**body: Any) -> type[Any]:
    own: dict[str, Any] = {
        "traits": Traits(ways=frozenset({"hook"}), sites=("q",), default_sites=("q",)),
        "Config": MethodConfig,
        "__init__": lambda self, config: setattr(self, "config", config),
        "parameter_count": lambda self, sites, spec: ParameterCount(1, 1),
        "build": lambda self, sites, spec: Plain(),
    }
    return type("Made", (), {**own, **body})


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, registry.REGISTRY)


@pytest.mark.parametrize(
    ("member", "meant"),
    [
        ("after_backwards", "after_backward(step, total)"),
        ("beforestep", "before_step(step, total)"),
        ("loss_term", "loss_terms(step) -> Tensor or None"),
        ("initialize", "initialise(target, weight)"),
        ("finnish", "finish()"),
        ("phase", "phases() -> list[Phase]"),
    ],
)
def test_a_misspelt_event_is_refused_when_the_module_is_attached(member: str, meant: str) -> None:
    class Misspelt(Plain):
        pass

    setattr(Misspelt, member, lambda self, *given: None)
    register("misspelt")(_method(build=lambda self, sites, spec: Misspelt()))
    model = tiny_model("bert")
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(MethodError, match=f"'misspelt'.*{member!r}") as error:
        attach(model, Recipe.from_dict({"layers": [{"attach": ["misspelt"]}]}), seed=0)
    assert meant in str(error.value)
    assert {name for name, _ in model.named_modules()} == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"before_step": lambda self: None}, r"before_step\(self\)`, which is called as .*step, total"),
        ({"merged": lambda self, site, weight: None}, "merged"),
        ({"finish": lambda self, step: None}, r"called as `finish\(\)`"),
        ({"loss_terms": property(lambda self: None)}, "a property at 'loss_terms'"),
        ({"members": lambda self: 3, "choose": lambda self, member: None}, "read as a value"),
        ({"choose": lambda self, member: None}, "no `members`"),
        ({"measure": lambda self, base, batches, objective: {}}, "no `measurement`"),
        ({"delta": lambda self, site, x, y: y}, "delta"),
    ],
)
def test_a_member_of_another_shape_is_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        check_module(_with(**body), ("hook",), "Method 'made'")


def test_what_a_way_asks_for_must_be_there() -> None:
    class Half(nn.Module):
        def side(self, site: Any) -> str:
            return "input"

        def deltas(self, site: Any, x: Tensor, y: Tensor, call: Any) -> Tensor:
            return x

    with pytest.raises(MethodError, match=r"'deltas', which nothing ever calls\. Did you mean 'delta'"):
        check_module(Half(), ("hook",), "Method 'made'")
    with pytest.raises(MethodError, match="acts by the way 'weight' but has no `weight_targets`"):
        check_module(Plain(), ("hook", "weight"), "Method 'made'")
    check_module(Plain(), ("hook",), "Method 'made'")


@pytest.mark.parametrize(
    ("kind", "member"), [("lora", "as_lora"), ("dora", "as_dora"), ("ia3", "as_ia3"), ("prefix", "key_value")]
)
def test_what_a_format_is_written_from_must_be_there(kind: Any, member: str) -> None:
    peft = PeftFormat(kind)
    with pytest.raises(MethodError, match=f"said in peft's format '{kind}' but has no `{member}`"):
        check_module(Plain(), ("hook",), "Method 'made'", peft)
    check_module(_with(**{member: lambda self, *given: None}), ("hook",), "Method 'made'", peft)
    register("made")(_method(peft=peft))
    with pytest.raises(MethodError, match=f"'made'.*`{member}`"):
        attach(tiny_model("bert"), Recipe.from_dict({"layers": [{"attach": ["made"]}]}), seed=0)


def test_a_format_that_peft_lacks_is_refused() -> None:
    with pytest.raises(MethodError, match=r"'loraa'.*lora.*Formats: lora, dora, ia3"):
        PeftFormat("loraa")  # type: ignore[arg-type]


def test_helpers_are_the_modules_own_affair() -> None:
    def helper(self: Any) -> None: ...

    fine = {
        "_after_backwards": helper,
        "allocate": helper,
        "restart": helper,
        "masks": helper,
        "weights": helper,
        "after_step": lambda self, step, total=0, *rest: None,
        "after_steps": helper,  # beside the member itself it is no misspelling
        "settled": staticmethod(lambda step, total: True),
    }
    check_module(_with(**fine), ("hook",), "Method 'made'")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"sizefield": "rank"}, "'sizefield', which nothing ever calls. Did you mean 'size_field'"),
        ({"default_site": ("q",)}, "'default_sites'"),
        ({"amongst": lambda self, sites, spec: sites}, "'among'"),
        ({"size_field": "rnk"}, "size_field='rnk', which its config lacks: sites"),
        ({"build": lambda self, sites: None}, r"called as `build\(sites, spec\)"),
        ({"default_sites": lambda self: ("q",)}, "read as a value"),
        ({"pefts": PeftFormat("lora")}, "'pefts', which nothing ever calls. Did you mean 'peft'"),
        ({"peft": "lora"}, r"peft='lora'; write PeftFormat\("),
        ({"peft": lambda self: PeftFormat("lora")}, "read as a value"),
        ({"peft": property(lambda self: PeftFormat("lora"))}, "sets another in its __init__"),
        ({"narrow": {"rank": {"A": (0,)}}}, r"narrow=.*, but its config has sites"),
        ({"narrow": {"sites": {"A": 0}}}, r"narrow=.* along which dimensions: .*\(0,\)"),
        ({"narrow": {"sites": {"A": ()}}}, "along which dimensions"),
        ({"narrow": {"sites": {"A": (-1,)}}}, "along which dimensions"),
        ({"narrow": {"sites": "A"}}, "along which dimensions"),
        ({"narrow": ("sites",)}, "along which dimensions"),
    ],
)
def test_a_method_class_is_checked_when_it_is_registered(body: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        register("made")(_method(**body))


def test_a_missing_part_names_its_misspelling() -> None:
    cls = _method(parameters_count=lambda self, sites, spec: None)
    del cls.parameter_count
    with pytest.raises(MethodError, match=r"lacks parameter_count\. Is 'parameters_count' for"):
        register("made")(cls)


@pytest.mark.parametrize("case", sorted(ON_ENCODERS))
def test_no_alarm_on_what_is_built_in(case: str) -> None:
    recipe = recipe_of(case)
    with attach(tiny_model("bert"), recipe, seed=0) as hybrid:
        assert {entry.name for entry in recipe.entries()} <= set(hybrid.modules)


def test_the_table_and_the_protocols_agree() -> None:
    declared = {m.name: m for m in MEMBERS if m.owner == "module"}
    for home in (modules, lifecycle):
        for name in home.__all__:
            protocol = getattr(home, name)
            if name in ("Calibration", "Explicit", "Objective", "Placement", "WeightTarget", "WrittenOut"):
                continue
            for member, value in vars(protocol).items():
                if member.startswith("_"):
                    continue
                takes = declared[member].takes
                given = tuple(inspect.signature(value).parameters)[1:] if inspect.isfunction(value) else None
                assert takes == given, member
            assert set(protocol.__annotations__) <= set(declared)


def test_the_table_is_complete_and_rendered() -> None:
    optional = [m for m in MEMBERS if not m.way]
    assert len({(m.owner, m.name) for m in MEMBERS}) == len(MEMBERS)
    for owner in ("module", "method"):
        text = members_table(owner)  # type: ignore[arg-type]
        own = {m.signature for m in optional if m.owner == owner}
        assert all((f"`{m.signature}`" in text) == (m.signature in own) for m in optional)
