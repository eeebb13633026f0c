"""Whether a decoding step can go on from a cache is read off graph and modules."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny import tiny_model

from autopeft.hybrid import attach
from autopeft.injection import allows_cache
from autopeft.injection.caching import moving
from autopeft.method import Slot
from autopeft.recipe import Recipe

LORA = {"lora": {"rank": 2}}
BY_SEQUENCE = {"route": {"children": [LORA, "ia3"], "level": "sequence"}}


def allowed(name: str, *items: Any, model: tuple[Any, ...] = (), **where: Any) -> bool:
    body = {"name": "r", "layers": [{"attach": list(items), **where}] if items else [], "model": list(model)}
    with attach(tiny_model(name), Recipe.from_dict(body), seed=0) as hybrid:
        return allows_cache(hybrid.graph, hybrid.modules, 3)


def test_what_moves() -> None:
    front, end = Slot(3, offset=2), Slot(1, anchor="end")
    assert moving([], sees_text=False, tokens=1) == moving([front], sees_text=False, tokens=2) == ""
    assert (
        moving([front], sees_text=False, tokens=1) == "stands behind the first 2 tokens of a text that had 1"
    )
    assert moving([front], sees_text=True, tokens=2) == "depends on the text"
    assert moving([front, end], sees_text=False, tokens=2) == "stands at the end of the text"


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_an_encoder_reads_its_text_once(name: str) -> None:
    """So what is made of its text, or pools it, stands in no decoder's way."""
    once = name == "t5"
    assert allowed(name, model=({"smop": {"length": 2}},)) == once
    assert allowed(name, "apt") == once
    assert allowed(name, {"gate": [LORA, "ia3"]}, **({"stack": "encoder"} if once else {})) == once
    assert not allowed(name, {"gate": [LORA, "ia3"]}, **({"stack": "decoder"} if once else {}))


def test_a_gate_on_keys_and_values_of_the_source() -> None:
    """They are made once; queries are made of each new token."""
    for site, expected in (("cross_k", True), ("cross_q", False)):
        lora = {"lora": {"rank": 2, "sites": [site]}}
        assert allowed("t5", {"gate": [lora, lora]}, stack="decoder") == expected


def test_a_route() -> None:
    assert not allowed("llama", BY_SEQUENCE)
    assert allowed("llama", {"route": [LORA, LORA]}), "by token"
    alone = {"route": {"children": [{"lora": {"rank": 2}}], "level": "sequence"}}
    assert allowed("llama", alone), "one child has no router"
    assert not allowed("llama", {"sum": [BY_SEQUENCE, LORA]}), "within another composition"


def test_gates_of_prompts() -> None:
    assert allowed("llama", {"apt": {"token_gate": False}})
    assert not allowed("llama", "apt")
    assert not allowed("llama", {"gate": [{"prefix_tuning": {"length": 2}}]})
