from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toy import counted, toy_specs
from support.training import encoded_task, tiny_bert
from torch import Tensor

from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

PLAN = TrainingPlan(steps=8, batch_size=8, seed=3, device="cpu", shortcuts=False)
LENGTH = 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(method: str = "spot", start: Any = None, **options: Any) -> Recipe:
    item: dict[str, Any] = {method: {"length": LENGTH, **options}}
    named = [] if start is None else [start] if isinstance(start, str) else start
    if named:
        item["from"] = start
    inputs = {"inputs": {name: name for name in named}} if named else {}
    training = {"learning_rate": 0.1, "warmup": 0.0}
    return Recipe.from_dict({"name": "r", **inputs, "model": [item], "training": training})


def left(folder: str, table: Tensor | None = None, task: Tensor | None = None, **options: Any) -> Any:
    """What a training of `spot` has left, with these prompts where they are planted."""
    with attach(tiny_bert(), recipe(**options), seed=1) as hybrid:
        train(hybrid, encoded_task(), PLAN)
        module: Any = hybrid.modules["spot"]
        with torch.no_grad():
            module.table.copy_(module.table if table is None else table)
            module.task_prompt.copy_(module.task_prompt if task is None else task)
        hybrid.save(folder)
    return module


def attached(method: str = "spot", start: Any = None, **options: Any) -> tuple[Hybrid, Any]:
    hybrid = attach(tiny_bert(), recipe(method, start, **options), seed=5)
    return hybrid, hybrid.modules[method]


def width() -> int:
    return int(tiny_bert().config.hidden_size)


@given(toy_specs, st.integers(1, 9))
def test_count_is_what_it_holds(spec: BackboneSpec, length: int) -> None:
    deployed, trained, held, held_trained = counted("spot", spec, length=length)
    assert deployed == trained == held == held_trained == length * spec.stacks[0].hidden


# One source
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spot", "prompt_tuning"])
def test_the_prompt_starts_bit_for_bit_as_the_source_ended(method: str) -> None:
    source = left("source")
    _, module = attached(method, "source")
    assert torch.equal(module.table, source.table)
    assert module.table.requires_grad


def test_a_source_may_be_of_prompt_tuning() -> None:
    with attach(tiny_bert(), recipe("prompt_tuning"), seed=1) as hybrid:
        hybrid.save("source")
    _, module = attached("spot", "source")
    assert torch.equal(module.table, hybrid.root.get_parameter("prompt_tuning.table"))


def test_with_a_random_source_it_is_prompt_tuning() -> None:
    """The same training to the last bit, from what plain prompt tuning would have begun with."""
    plain, module = attached("prompt_tuning")
    plain.save("source")
    trained = []
    train(plain, encoded_task(), PLAN)
    trained.append(module.table.detach().clone())
    hybrid, module = attached("spot", "source")
    train(hybrid, encoded_task(), PLAN)
    assert torch.equal(module.table, trained[0])


def test_a_source_of_another_length_is_refused() -> None:
    left("source")
    with pytest.raises(MethodError, match=r"shape \(5, .*`length`"):
        attached("spot", "source", length=LENGTH + 1)


# The task's prompt
# ---------------------------------------------------------------------------------------------------


def test_the_task_prompt_is_the_prompt_after_few_steps(tmp_path: Path) -> None:
    hybrid, module = attached(task_share=0.25)
    seen = []
    train(hybrid, encoded_task(), PLAN, on_step=lambda *_, **__: seen.append(module.table.detach().clone()))
    assert torch.equal(module.task_prompt, seen[1])
    assert not torch.equal(module.task_prompt, module.table)
    hybrid.save(tmp_path / "saved")
    again: Any = load(tiny_bert(), tmp_path / "saved").modules["spot"]
    assert torch.equal(again.task_prompt, module.task_prompt)
    assert torch.equal(again.table, module.table)


# Several sources
# --------------------------------------------------------------------------------------------------------


def planted(**options: Any) -> tuple[Hybrid, Any, list[Any]]:
    """Two sources; the task prompt of the second is what the target's will be."""
    alike, other = attached(task_share=0.5, **options)
    train(alike, encoded_task(), TrainingPlan(steps=4, batch_size=8, seed=3, device="cpu", shortcuts=False))
    early = other.table.detach().clone()
    shape = (LENGTH, width())
    sources = [
        left("far", torch.full(shape, 1.0), -early),
        left("near", torch.full(shape, 2.0), early + 0.01),
        left("middle", torch.full(shape, 4.0), early + early.std() * torch.randn(shape)),
    ]
    hybrid, module = attached("spot", ["far", "near", "middle"], task_share=0.5, **options)
    return hybrid, module, sources


def test_the_most_similar_source_is_where_it_starts() -> None:
    hybrid, module, _ = planted()
    first = module.table.detach().clone()
    starts = []
    begin = module._begin
    module._begin = lambda: (begin(), starts.append(module.table.detach().clone()))
    result = train(hybrid, encoded_task(), PLAN)
    assert module.weights.tolist() == [0, 1, 0]
    assert torch.equal(starts[0], torch.full_like(first, 2.0))
    similarities = result.outputs["task"]
    assert similarities.argmax() == 1
    assert not torch.equal(module.task_prompt, module.table)


def test_the_head_starts_anew_behind_the_choice() -> None:
    hybrid, module, _ = planted()
    head = [p.detach().clone() for p in hybrid.head_parameters()]
    heads = []
    begin = module._begin
    module._begin = lambda: (begin(), heads.append([p.detach().clone() for p in hybrid.head_parameters()]))
    train(hybrid, encoded_task(), PLAN)
    assert all(torch.equal(a, b) for a, b in zip(head, heads[0], strict=True))


def test_a_mean_of_several_is_weighted_by_similarity() -> None:
    hybrid, module, _ = planted(top=2)
    starts = []
    begin = module._begin
    module._begin = lambda: (begin(), starts.append(module.table.detach().clone()))
    similarities = train(hybrid, encoded_task(), PLAN).outputs["task"].clamp(min=0)
    assert module.weights.sum().item() == pytest.approx(1.0)
    assert (module.weights > 0).sum() == 2
    expected = (similarities[1] * 2.0 + similarities[2] * 4.0) / (similarities[1] + similarities[2])
    torch.testing.assert_close(starts[0], torch.full_like(starts[0], float(expected)))
