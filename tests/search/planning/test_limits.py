"""What predictions for a search's limits are measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import small_search
from support.tiny import tiny_config
from transformers import AutoModel

from autopeft.assets import resolve_model
from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.resources.measuring import Bench
from autopeft.search.planning import limits, probes
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.tasks.kinds import get_kind
from autopeft.training import metering


class Stop(Exception):  # noqa: N818
    pass


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return small_search(tmp_path)


@pytest.mark.parametrize(
    ("asked", "large", "found"),
    [
        ({"precision": "bf16"}, True, torch.bfloat16),
        ({"precision": "bf16"}, False, torch.float32),
        ({"precision": "bf16", "final_precision": "fp32"}, True, torch.float32),
        ({"final_precision": "bf16"}, False, torch.bfloat16),
        ({}, True, torch.float32),
    ],
)
def test_measurements_are_in_the_precision_of_finalists(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: Any, large: bool, found: torch.dtype
) -> None:
    on: list[torch.dtype] = []

    def calibrate(bench: Bench, *args: Any, **more: Any) -> None:
        on.append(next(bench.model.base_model.parameters()).dtype)
        raise Stop

    monkeypatch.setattr(limits, "calibrate", calibrate)
    monkeypatch.setattr(probes, "LARGE", 1 if large else 10**9)
    with pytest.raises(Stop):
        prepare(SearchArguments(**arguments, **asked, max_step_time="1s"))
    assert on == [found]


def test_a_limit_on_memory_is_refused_where_it_cannot_be_measured(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "_CLEAR", tmp_path / "missing" / "clear_refs")
    with pytest.raises(UsageError, match="max_memory"):
        prepare(SearchArguments(**arguments, max_memory="1GB"))


@pytest.mark.parametrize(
    ("family", "kind", "deep"),
    [
        ("bert", "classification", False),
        ("distilbert", "classification", True),
        ("distilbert", "regression", True),
        ("distilbert", "token_classification", False),
    ],
)
def test_it_knows_whether_the_head_has_hidden_layers(
    family: str, kind: str, deep: bool, tmp_path: Path
) -> None:
    config = tiny_config(family)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    spec = limits.with_head(spec_of(config), get_kind(kind), ("no", "yes"), resolve_model(str(tmp_path)))
    assert spec.logits is not None
    assert spec.logits.deep == deep


def test_what_a_search_tries_has_the_hidden_layers_learn_more_slowly(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    config = tiny_config("distilbert")
    config.update({"vocab_size": 200, "max_position_embeddings": 32})
    AutoModel.from_config(config).save_pretrained(arguments["model"])
    ready = prepare(SearchArguments(**arguments))
    bound = ready.space.bind(ready.spec)
    tried = [bound.materialize(bound.middle())]
    tried += [Recipe.from_dict(dict(c)) for b in ready.baselines() if b.kind == "lora" for c in b.candidates]
    assert len(tried) > 1
    for recipe in tried:
        assert recipe.training.settings("head", part="hidden").learning_rate == 3e-4
        assert recipe.training.settings("head").learning_rate == 1e-2
