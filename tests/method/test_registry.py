from __future__ import annotations

from typing import Any

import pytest

import autopeft.composition  # noqa: F401 (its names are reserved)
from autopeft.errors import MethodError
from autopeft.method import MethodConfig, Traits, get_method, method_names, register


def _class(level: str, *members: str) -> type[Any]:
    body: dict[str, Any] = {m: lambda self: None for m in members}
    traits = Traits(ways=frozenset() if level == "training" else frozenset({"hook"}), level=level)  # type: ignore[arg-type]
    return type("Made", (), {"traits": traits, "Config": MethodConfig, **body})


@pytest.mark.parametrize("name", ["gate", "Camel", "two words", "lora"])
def test_names_that_cannot_be_taken(name: str) -> None:
    method_names()
    with pytest.raises(MethodError, match=name):
        register(name)(_class("layers", "parameter_count", "build"))


def test_a_method_needs_count_and_build_and_a_policy_adjust() -> None:
    with pytest.raises(MethodError, match="parameter_count, build"):
        register("bare")(_class("layers"))
    with pytest.raises(MethodError, match="adjust"):
        register("bare")(_class("training", "parameter_count", "build"))
    assert get_method("lora_plus").traits.level == "training"


def test_a_misspelt_name_gets_near_matches() -> None:
    with pytest.raises(MethodError, match="'prefix_tuning'"):
        get_method("prefix_tunning")


def test_every_method_with_a_size_names_a_field_of_its_config() -> None:
    fields = {n: getattr(get_method(n), "size_field", None) for n in method_names()}
    assert {
        n: f for n, f in fields.items() if f is not None and f not in get_method(n).Config.model_fields
    } == {}
    assert {n for n, f in fields.items() if f is None} <= {
        "aprompt",  # three sizes, each of which may be zero
        "bitfit",
        "child_tuning_f",
        "ia3",
        "ipa",
        "krona",
        "mean_pooling",
        "ssf",
        "lora_plus",
        "lora",
        "ptp",
        "xattn_tuning",
    }


def test_what_may_be_listed_for_layers_too_has_sites_that_tell_them() -> None:
    both = Traits(
        ways=frozenset({"weight"}),
        sites=("layer",),
        default_sites=("layer",),
        level="model",
        also_in_layers=True,
    )
    assert both.levels == ("model", "layers")
    assert Traits(ways=frozenset({"hook"}), level="model").levels == ("model",)
    with pytest.raises(MethodError, match="default sites that tell its layers"):
        Traits(ways=frozenset({"weight"}), level="model", also_in_layers=True)
    with pytest.raises(MethodError, match="has level 'model'"):
        Traits(ways=frozenset({"weight"}), sites=("layer",), default_sites=("layer",), also_in_layers=True)
