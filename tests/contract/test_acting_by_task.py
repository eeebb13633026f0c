"""What holds for everything that acts by the task of a row; a row in `support.cases.BY_TASK` gives it all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import pytest
import torch
from support.cases import BY_TASK, TASKS, recipe_of
from support.steps import NO_STEP
from support.tiny import randomise, snapshot, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.composition import composition_names
from autopeft.errors import CompositionError, UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, load, of_task
from autopeft.method import method_names
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import acts_by_task, for_tasks, lacks_tasks, tasks_of

ARCHITECTURES = ("bert", "llama", "t5", "gpt2", "vit", "bart")
IDS = torch.tensor([0, 1, 2, 1])
LEFT_WHOLE = ("moa", "moa-first")


def able(case: str) -> list[str]:
    return [a for a in ARCHITECTURES if case != "pha" or a in ("t5", "bart")]


PAIRS = [
    pytest.param(case, a, marks=() if a in chosen else pytest.mark.slow)
    for case in BY_TASK
    for chosen in [sorted(able(case), key=lambda a: crc32(f"{a} {case}".encode()))[:2]]
    for a in able(case)
]


def attached(case: str, name: str) -> tuple[Any, Hybrid]:
    model: Any = tiny_model(name)
    hybrid = attach(model, recipe_of(case), seed=0)
    randomise(hybrid.root, std=0.3)
    hybrid.refresh()
    return model.eval(), hybrid


def mixed(name: str, **options: Any) -> dict[str, Tensor]:
    return {**tiny_inputs(name, batch=len(IDS), **options), "task_id": IDS}


def alone(inputs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in inputs.items()}


def test_everything_that_acts_by_the_task_has_a_row() -> None:
    names = {name for name in (*method_names(), *composition_names()) if acts_by_task(name)}
    assert names - {"intrinsic_prompt"} == {next(iter(item)) for _, item in BY_TASK.values()}


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_a_row_is_answered_as_in_a_batch_of_its_task(case: str, name: str) -> None:
    model, _ = attached(case, name)
    inputs = mixed(name, pad=2)
    together = model(**inputs).logits
    for task in range(len(TASKS)):
        rows = (task == IDS).nonzero()[:, 0]
        found = model(**alone(inputs, rows)).logits
        torch.testing.assert_close(found, together[rows], atol=2e-6, rtol=1e-5)
    if not case.startswith("moa"):  # which chooses by what it reads
        swapped = model(**{**inputs, "task_id": (IDS + 1) % 3}).logits
        assert (swapped - together).abs().amax(dim=tuple(range(1, together.ndim))).min() > 1e-5


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_every_parameter_gets_a_gradient_and_the_count_is_real(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    assert hybrid.counts().trained == sum(p.numel() for p in hybrid.root.parameters())
    out = model.train()(**mixed(name, pad=2)).logits
    loss = (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum()
    for module in hybrid.modules.values():
        term = cast(Any, module).loss_terms(NO_STEP) if hasattr(module, "loss_terms") else None
        loss = loss if term is None else loss + term
    loss.backward()
    dead = [n for n, p in hybrid.root.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("case", ["switch", "switch-prefixes", "hyperformer", "pha"])
def test_rows_of_a_task_do_not_touch_what_is_of_others(case: str) -> None:
    model, hybrid = attached(case, "t5")
    inputs = tiny_inputs("t5", batch=2)
    model(**inputs, task_id=torch.tensor([1, 1])).logits.sum().backward()
    if case.startswith("switch"):
        touched = {n.partition(".")[0] for n, p in hybrid.root.named_parameters() if p.grad is not None}
        assert touched == {[e.name for e in hybrid.recipe.entries()][1]}
    else:
        (module,) = hybrid.modules.values()
        gradient = cast(Any, module).generator.tasks.grad
        assert gradient[1].abs().sum() > 0
        assert not gradient[[0, 2]].any()


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_it_is_saved_copied_and_taken_off(case: str, name: str, tmp_path: Path) -> None:
    model, hybrid = attached(case, name)
    inputs = mixed(name, pad=2)
    expected = model(**inputs).logits
    torch.testing.assert_close(copy.deepcopy(model)(**inputs).logits, expected, atol=0, rtol=0)
    hybrid.save(tmp_path)
    fresh: Any = tiny_model(name)
    again = load(fresh, tmp_path)
    assert again.tasks == TASKS
    torch.testing.assert_close(fresh.eval()(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
    before = snapshot(tiny_model(name))
    hybrid.detach()
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])] == []


@pytest.mark.parametrize(("case", "name"), [p for p in PAIRS if p.values[1] != "vit"])
def test_padding_changes_nothing_and_checkpointing_gives_the_same_gradients(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    inputs = mixed(name)
    padded = {**mixed(name, pad=3), "input_ids": mixed(name, pad=3)["input_ids"]}
    length = inputs["input_ids"].shape[1]
    ours, theirs = model(**inputs).logits, model(**padded).logits
    if ours.ndim == 3 and "decoder_input_ids" not in inputs:
        theirs = theirs[:, :length]
    torch.testing.assert_close(theirs, ours, atol=3e-6, rtol=1e-4)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(0)  # the backbone's dropout draws
        model.train()(**inputs).logits.square().sum().backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in hybrid.root.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for found, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", BY_TASK)
def test_a_hybrid_answers_for_the_task_that_it_is_told(case: str) -> None:
    name = "t5"
    model, hybrid = attached(case, name)
    inputs = mixed(name)
    expected = model(**inputs).logits
    plain = {key: value for key, value in inputs.items() if key != "task_id"}
    if not case.startswith("moa"):
        with pytest.raises(CompositionError, match=r"hybrid\.task = 'first'"):
            model(**plain)
    for number, task in enumerate(TASKS):
        hybrid.task = task
        assert hybrid.task == task
        rows = (number == IDS).nonzero()[:, 0]
        torch.testing.assert_close(model(**plain).logits[rows], expected[rows], atol=2e-6, rtol=1e-5)
    with pytest.raises(UsageError, match=r"There is no task 'frist' here. Did you mean 'first'"):
        hybrid.task = "frist"


@pytest.mark.parametrize("case", [c for c in BY_TASK if c != "pha"])
def test_texts_are_written_with_and_without_a_cache_alike(case: str) -> None:
    model, hybrid = attached(case, "llama")
    hybrid.task = "second"
    inputs = tiny_inputs("llama")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    without = model.generate(**inputs, **options, use_cache=False)
    if case.startswith("moa"):
        with pytest.raises(CompositionError, match="use_cache=False"):
            model.generate(**inputs, **options, use_cache=True)
    else:
        assert torch.equal(model.generate(**inputs, **options, use_cache=True), without)


@pytest.mark.parametrize(("case", "name"), [p for p in PAIRS if p.values[0] not in LEFT_WHOLE])
def test_written_out_for_one_task_it_answers_as_before(case: str, name: str) -> None:
    model, hybrid = attached(case, name)
    inputs = tiny_inputs(name, pad=2)
    for number, task in enumerate(TASKS):
        expected = model(**inputs, task_id=torch.full((2,), number)).logits
        graph, modules = of_task(hybrid, task)
        assert tasks_of(graph.recipe) == ()
        fresh: Any = tiny_model(name).eval()
        with attach(fresh, graph.recipe) as plain:
            for entry, module in plain.modules.items():
                getattr(module, "deploy", lambda: None)()
                module.load_state_dict(modules[entry].state_dict())
            plain.refresh()
            torch.testing.assert_close(fresh(**inputs).logits, expected, atol=2e-6, rtol=1e-5)
    with pytest.raises(UsageError, match="no task 'frist'"):
        of_task(hybrid, "frist")


def test_behind_a_gate_one_lora_has_no_scale_either() -> None:
    item = {"gate": [{"task_route": {"children": [{"lora": {"rank": 2, "alpha": 6.0}}], "copies": 2}}]}
    recipe = for_tasks(Recipe.from_dict({"layers": [{"attach": [item]}]}), TASKS)
    model: Any = tiny_model("bert").eval()
    hybrid = attach(model, recipe, seed=0)
    randomise(hybrid.root, std=0.3)
    inputs = tiny_inputs("bert")
    expected = model(**inputs, task_id=torch.ones(2, dtype=torch.long)).logits
    graph, modules = of_task(hybrid, "second")
    fresh: Any = tiny_model("bert").eval()
    with attach(fresh, graph.recipe) as plain:
        for entry, module in plain.modules.items():
            module.load_state_dict(modules[entry].state_dict())
        torch.testing.assert_close(fresh(**inputs).logits, expected, atol=2e-6, rtol=1e-5)


# Names of tasks
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BY_TASK)
def test_names_of_tasks_are_filled_in_once(case: str) -> None:
    _, item = BY_TASK[case]
    (kind, body) = next(iter(item.items()))
    bare = {key: value for key, value in body.items() if key != "tasks"}
    tree = {"layers": [{"attach": [{kind: bare}]}]}
    recipe = Recipe.from_dict(tree)
    assert lacks_tasks(recipe)
    found = for_tasks(recipe, TASKS)
    assert tasks_of(found) == TASKS
    assert found.hash() == Recipe.from_dict({"layers": [{"attach": [item]}]}).hash()
    assert for_tasks(found, TASKS) is found
    with pytest.raises(UsageError, match="is for the tasks first, second, third in this order"):
        for_tasks(found, ("second", "first", "third"))
    with pytest.raises(UsageError, match="of one task alone"):
        for_tasks(found, ())


def test_one_task_is_refused_before_anything_is_built() -> None:
    from support.toy import toy_spec

    recipe = Recipe.from_dict({"layers": [{"attach": [{"switch": ["lora", "ia3"]}]}]})
    for tasks in ((), ("one",)):
        with pytest.raises(UsageError, match=r"needs two or more, but got|has a child for each task"):
            build_graph(for_tasks(recipe, tasks), toy_spec())


def test_a_child_that_was_written_once_is_there_for_each_task() -> None:
    recipe = Recipe.from_dict({"layers": [{"attach": [{"switch": [{"lora": {"rank": 2}}]}]}]})
    assert [e.name for e in for_tasks(recipe, TASKS).entries()] == ["lora", "lora_2", "lora_3"]
