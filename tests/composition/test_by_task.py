"""`switch`, `task_route` and `moa` by hand."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from support.steps import NO_STEP
from support.tiny import tiny_inputs, tiny_model
from torch import Tensor

from autopeft.composition import ChildSpec, MoA, TaskRoute, default_options
from autopeft.errors import CompositionError
from autopeft.hybrid import attach, of_task
from autopeft.method import Call, Context
from autopeft.recipe import Recipe
from autopeft.spec import Site

TASKS = ["a", "b"]


def recipe(item: Any) -> Recipe:
    return Recipe.from_dict({"layers": [{"attach": [item]}]})


def test_moelora_by_hand() -> None:
    """e = (1, 0) and W = [[0, 0], [ln 3, 0]] mix by 1/4 and 3/4; scales are α/r of the whole rank."""
    options = {**default_options("task_route"), "tasks": TASKS, "vector": 2}
    site = Site("encoder", 0, "q", "linear", 2, 2)
    specs = [ChildSpec(n, n, frozenset({"hook"}), (site,)) for n in ("lora", "lora_2")]
    route = TaskRoute.build(specs, options)
    with torch.no_grad():
        route.vectors.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        route.gate.weight.copy_(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]))
    torch.testing.assert_close(route.weights(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert sum(p.numel() for p in route.parameters()) == TaskRoute.parameter_count(specs, options).deployed

    class Along:
        def __init__(self, name: str, axis: int) -> None:
            self.name, self.axis = name, axis

        def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
            return 2.0 * x * torch.eye(2)[self.axis]  # α/r = 4/2

    children: list[Any] = [Along("lora", 0), Along("lora_2", 1)]
    x = torch.ones(1, 3, 2)
    found = route.delta(site, children, x, x, Call(Context(task_id=torch.tensor([0]))))
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5]).expand(1, 3, 2))


def test_tasks_begin_with_different_weights_of_a_task_route() -> None:
    torch.manual_seed(0)
    options = {**default_options("task_route"), "tasks": [f"t{i}" for i in range(400)]}
    specs = [ChildSpec(f"c{i}", f"c{i}", frozenset({"hook"}), ()) for i in range(8)]
    logits = (route := TaskRoute.build(specs, options)).gate(route.vectors.weight)
    assert 0.5 < logits.std().item() < 0.66  # 1/√3: uniform in ±1/8, times 64 normal numbers


def test_experts_of_a_task_are_one_lora() -> None:
    item = {"task_route": {"children": [{"lora": {"rank": 2, "alpha": 4.0}}], "copies": 3, "tasks": TASKS}}
    with attach(tiny_model("bert"), recipe(item), seed=0) as hybrid:
        graph, _ = of_task(hybrid, "b")
        (entry,) = graph.recipe.entries()
        assert (entry.method, entry.item.method_config().rank) == ("lora", 6)  # type: ignore[attr-defined]


def test_a_route_by_task_of_adapters_cannot_be_written_out() -> None:
    item = {"task_route": {"children": ["serial_adapter"], "copies": 2, "tasks": TASKS}}
    with attach(tiny_model("bert"), recipe(item)) as hybrid, pytest.raises(Exception, match="only LoRAs"):
        of_task(hybrid, "a")


@pytest.mark.parametrize(
    ("children", "message"),
    [
        (["bitfit", "bitfit"], "alters weights"),
        (["lora", {"prefix_tuning": {"length": 2}}], "prefixes or none"),
        (["lora", "ia3", "ssf"], "a child for each task, but got 3 for the 2 tasks a, b"),
    ],
)
def test_a_switch_refuses_what_cannot_be_chosen_by_row(children: list[Any], message: str) -> None:
    named = [{**(c if isinstance(c, dict) else {c: {}}), "as": f"c{i}"} for i, c in enumerate(children)]
    with pytest.raises(CompositionError, match=message):
        attach(tiny_model("bert"), recipe({"switch": {"children": named, "tasks": TASKS}}))


def test_prefixes_of_different_lengths_need_batches_of_one_task() -> None:
    children = [{"prefix_tuning": {"length": n}, "as": f"p{n}"} for n in (2, 3)]
    model: Any = tiny_model("bert")
    with attach(model, recipe({"switch": {"children": children, "tasks": TASKS}})):
        inputs = tiny_inputs("bert")
        for task in (0, 1):
            model(**inputs, task_id=torch.full((2,), task))
        with pytest.raises(CompositionError, match="different lengths"):
            model(**inputs, task_id=torch.tensor([0, 1]))


# MoA
# ------------------------------------------------------------------------------------------------------


def routed(router: str = "each_layer", tasks: int = 3, layers: int = 1, width: int = 4) -> MoA:
    sites = tuple(Site("encoder", i, n, "linear", width, width) for i in range(layers) for n in ("q", "v"))
    specs = [ChildSpec(f"c{i}", f"c{i}", frozenset({"hook"}), sites) for i in range(tasks)]
    names = [f"t{i}" for i in range(tasks)]
    return MoA.build(specs, {**default_options("moa"), "tasks": names, "router": router})


def test_the_routers_loss_by_hand() -> None:
    moa = routed().train()
    (site,) = moa.first.values()
    with torch.no_grad():
        moa.routers["encoder-0"].zero_()[0, 0] = 2.0
    x = torch.zeros(1, 5, 4)
    x[..., 0] = 1.0
    numbers, there = moa.choice(site, x, Call(Context(task_id=torch.tensor([0]))))
    assert (numbers.tolist(), there) == ([0], [0])
    term = moa.loss_terms(NO_STEP)
    assert term is not None
    assert term.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-5)  # 0.2395
    assert moa.loss_terms(NO_STEP) is None


def test_the_routers_loss_is_the_mean_over_layers() -> None:
    moa = routed(layers=2)
    moa._losses = {"encoder-0": torch.tensor(1.0), "encoder-1": torch.tensor(3.0)}
    assert cast(Tensor, moa.loss_terms(NO_STEP)).item() == 2.0


def test_while_training_the_task_decides_and_afterwards_the_router() -> None:
    moa = routed()
    (site,) = moa.first.values()
    with torch.no_grad():
        moa.routers["encoder-0"].copy_(torch.eye(3, 4))
    x = torch.eye(4)[[2, 0]][:, None].expand(2, 5, 4)
    told = {"task_id": torch.tensor([1, 1])}
    assert moa.train().choice(site, x, Call(Context(**told)))[1] == [1]
    numbers, there = moa.eval().choice(site, x, Call(Context(**told)))
    assert (numbers.tolist(), there) == ([2, 0], [0, 2])


@pytest.mark.parametrize(("router", "count"), [("each_layer", 6 * 3 * 384), ("first_layer", 3 * 384)])
def test_moa_has_a_router_for_each_layer_or_one(router: str, count: int) -> None:
    moa = routed(router, layers=6, width=384)
    assert sum(p.numel() for p in moa.parameters()) == count
    if router == "first_layer":
        call = Call(Context(task_id=None))
        sites = [Site("encoder", i, n, "linear", 384, 384) for i in range(6) for n in ("q", "v")]
        found = [moa.eval().choice(site, torch.randn(2, 3, 384), call)[0].tolist() for site in sites]
        assert found == [found[0]] * 12


def test_a_model_learns_which_task_a_text_is_of() -> None:
    """Rows of the tasks differ by their tokens, and the routers learn it from the tasks."""
    item = {"moa": {"children": [{"lora": {"rank": 2}}], "copies": 2, "tasks": TASKS}}
    model: Any = tiny_model("bert")
    hybrid = attach(model, recipe(item), seed=0)
    moa: Any = hybrid.modules["moa"]
    optimizer = torch.optim.Adam(moa.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)

    def rows(n: int) -> tuple[dict[str, Tensor], Tensor]:
        task = torch.randint(0, 2, (n,), generator=generator)
        ids = torch.randint(3, 10, (n, 6), generator=generator) + 10 * task[:, None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, task

    for _ in range(30):
        inputs, task = rows(16)
        model.train()(**inputs, task_id=task)
        optimizer.zero_grad()
        cast(Tensor, moa.loss_terms(NO_STEP)).backward()
        optimizer.step()
    inputs, task = rows(64)
    chosen: list[Tensor] = []
    keep = moa.choice
    moa.choice = lambda *a: (found := keep(*a), chosen.append(found[0]))[0]
    model.eval()(**inputs)
    assert all((c == task).float().mean() > 0.9 for c in chosen)
