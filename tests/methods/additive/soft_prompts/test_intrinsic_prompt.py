"""IPT: the auto-encoder of prompts, and the few numbers of a new task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.steps import NO_STEP
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from transformers import BartConfig

from autopeft.backbones import spec_of
from autopeft.errors import MethodError, UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, load, of_task
from autopeft.method import Stored, get_method
from autopeft.recipe import Recipe

TASKS = ["a", "b", "c"]
SIZE = {"length": 4, "dimension": 2, "hidden": 8}


def subspace(**options: Any) -> Any:
    return {"intrinsic_prompt": {**SIZE, "tasks": TASKS, **options}, "from": [f"p{t}" for t in TASKS]}


def recipe(item: Any, *names: str) -> Recipe:
    return Recipe.from_dict({"inputs": {n: n for n in names}, "model": [item]})


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, task in enumerate(TASKS):
        with attach(tiny_model("llama"), recipe({"prompt_tuning": {"length": 4}}), seed=seed) as hybrid:
            hybrid.save(f"p{task}")


def learning() -> tuple[Any, Hybrid, Any]:
    model: Any = tiny_model("llama")
    hybrid = attach(model, recipe(subspace(), *(f"p{t}" for t in TASKS)), seed=0)
    return model, hybrid, hybrid.modules["intrinsic_prompt"]


def made(**options: Any) -> Any:
    method = get_method("intrinsic_prompt")
    spec = spec_of(BartConfig(d_model=options.pop("width"), vocab_size=50))
    sites = [s for s in spec.sites if s.name == "embeddings" and s.stack == "encoder"]
    return method(method.Config(**options)).build(sites, spec)


def test_counts() -> None:
    bart = spec_of(BartConfig(d_model=768, encoder_layers=6, decoder_layers=6))
    item = {"intrinsic_prompt": {"tasks": TASKS}, "from": TASKS}
    assert build_graph(recipe(item, *TASKS), bart).parameter_count().trained == 78_452_218
    item = {"intrinsic_prompt": {"stage": "task"}, "from": "a"}
    found = build_graph(recipe(item, "a"), bart).parameter_count()
    assert (found.trained, found.deployed) == (250, 76_800)


def test_the_smallest_one() -> None:
    module = made(width=3 * 16, length=2, dimension=2, hidden=4, tasks=("a", "b"))
    rows = 2 * 3 * 16
    assert sum(p.numel() for p in module.parameters()) == rows * 2 + 2 + 2 * 4 + 4 + 4 * rows + rows


def test_decoding_and_reconstruction_by_hand() -> None:
    module = made(width=16, length=1, dimension=1, hidden=1, stage="task")
    with torch.no_grad():
        module.z.fill_(0.5)
        for name, value in (("0_weight", 1.0), ("0_bias", 0.0), ("2_weight", 2.0), ("2_bias", 1.0)):
            getattr(module, f"decoder_{name}").fill_(value)
    module._given = True
    torch.testing.assert_close(module._rows(), torch.full((1, 16), 1.92423), atol=1e-5, rtol=0)

    learns = made(width=16, length=1, dimension=1, hidden=1, tasks=("a", "b"), reconstruction=200.0)
    with torch.no_grad():
        for p in learns.parameters():
            p.zero_()
        learns.decoder[2].bias.copy_(torch.tensor([0.1, -0.1]).repeat(8))
    learns._given, learns._seen = True, torch.tensor([0, 1])
    assert learns.loss_terms(NO_STEP).item() == pytest.approx(2.0, abs=1e-5)


def test_rows_have_the_prompt_of_their_task_and_stored_ones_stay(prompts: None) -> None:
    model, hybrid, module = learning()
    kept = module.prompts.clone()
    assert not torch.equal(kept[0], kept[1])
    inputs = tiny_inputs("llama", batch=3)
    ids = torch.tensor([2, 0, 1])
    together = model.train()(**inputs, task_id=ids).logits
    term = module.loss_terms(NO_STEP)
    (together.square().mean() + term).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    for row, task in enumerate(ids.tolist()):
        one = {k: v[row : row + 1] for k, v in inputs.items()}
        torch.testing.assert_close(model(**one, task_id=torch.tensor([task])).logits, together[row : row + 1])
    optimizer = hybrid.optimizer()
    optimizer.step()
    assert torch.equal(module.prompts, kept)


def test_a_subspace_is_learnt_that_a_random_decoder_does_not_have(prompts: None) -> None:
    """Prompts of a plane are reconstructed; what no training has made is far from them."""
    _, _, module = learning()
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 4 * module.width, generator=generator)
    with torch.no_grad():
        codes = torch.randn(3, 2, generator=generator)
        module.prompts.copy_((codes @ plane).view(3, 4, module.width))
    module._seen = torch.arange(3)
    first = module.loss_terms(NO_STEP).item()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(400):
        module._seen = torch.arange(3)
        loss = module.loss_terms(NO_STEP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 * first


def test_a_task_trains_its_few_numbers_through_a_decoder_that_stays(prompts: None, tmp_path: Path) -> None:
    _, hybrid, module = learning()
    randomise(hybrid.root)
    decoder = {k: v.clone() for k, v in module.decoder.state_dict().items()}
    hybrid.save("space")
    item = {"intrinsic_prompt": {**SIZE, "stage": "task"}, "from": "space"}
    model: Any = tiny_model("llama")
    few = attach(model, recipe(item, "space"), seed=0)
    code: Any = few.modules["intrinsic_prompt"]
    assert [n for n, p in few.root.named_parameters() if p.requires_grad] == ["intrinsic_prompt.z"]
    assert few.counts().trained == 2
    for name, value in decoder.items():
        assert torch.equal(getattr(code, f"decoder_{name.replace('.', '_')}"), value)
    inputs = tiny_inputs("llama")
    optimizer = few.optimizer()
    before = logits(model, inputs)
    before.square().sum().backward()
    optimizer.step()
    trained = logits(model.eval(), inputs)
    assert not torch.equal(trained, before)
    few.save(tmp_path / "few")
    fresh: Any = tiny_model("llama")
    again = load(fresh, tmp_path / "few")
    assert sum(p.numel() for p in again.root.parameters()) == 4 * code.width
    torch.testing.assert_close(logits(fresh.eval(), inputs), trained, atol=1e-6, rtol=1e-6)
    start = {"prompt_tuning": {"length": 4}, "from": "few"}
    with attach(tiny_model("llama"), recipe(start, "few")) as goes_on:
        table = cast(Any, goes_on.modules["prompt_tuning"]).table
        torch.testing.assert_close(table, cast(Any, again.modules["intrinsic_prompt"]).table)


def test_it_is_saved_with_a_code_for_each_task_and_written_out(prompts: None, tmp_path: Path) -> None:
    model, hybrid, _ = learning()
    inputs, ids = tiny_inputs("llama", batch=3), torch.arange(3)
    expected = model.eval()(**inputs, task_id=ids).logits
    hybrid.save(tmp_path / "space")
    fresh: Any = tiny_model("llama")
    again = load(fresh, tmp_path / "space")
    assert sum(p.numel() for p in again.root.parameters()) == hybrid.counts().deployed
    torch.testing.assert_close(fresh.eval()(**inputs, task_id=ids).logits, expected, atol=1e-6, rtol=1e-6)
    graph, modules = of_task(again, "b")
    with attach(tiny_model("llama"), graph.recipe) as plain:
        (name,) = plain.modules
        plain.modules[name].load_state_dict(modules[name].state_dict())
        found = cast(Any, plain.model.eval())(**inputs).logits[1]
    torch.testing.assert_close(found, expected[1], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("starts", "message"),
    [(["pa", "pb"], "prompts of 3 tasks"), ([], "needs what another training has left")],
)
def test_missing_prompts_are_refused(prompts: None, starts: list[str], message: str) -> None:
    item = {"intrinsic_prompt": {**SIZE, "tasks": TASKS}, **({"from": starts} if starts else {})}
    with pytest.raises(UsageError, match=message):
        attach(tiny_model("llama"), recipe(item, *starts))


def test_a_task_without_a_decoder_is_refused(prompts: None) -> None:
    item = {"intrinsic_prompt": {**SIZE, "stage": "task"}, "from": "pa"}
    with pytest.raises(MethodError, match="decoded by one intrinsic_prompt"):
        attach(tiny_model("llama"), recipe(item, "pa"))
    other = Stored("x", "y", "lora", {}, own=False)
    with pytest.raises(MethodError, match="decoded by one intrinsic_prompt"):
        made(width=16, length=1, dimension=1, hidden=1, stage="task").start_from((other,))
