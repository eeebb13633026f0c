"""Several threads on one model: forwards side by side are right, changes under a forward are refused."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.injection import changing
from autopeft.injection.threads import Forwards
from autopeft.recipe import Recipe

RECIPES: dict[str, dict[str, Any]] = {
    "activations": {"layers": [{"attach": [{"lora": {"rank": 2}}, {"prefix_tuning": {"length": 2}}]}]},
    "prompts": {"model": [{"prompt_tuning": {"length": 3}}]},
    "weights": {"layers": [{"attach": [{"dora": {"rank": 2}}]}]},
    "bitfit": {"layers": [{"attach": ["bitfit"]}]},
}


class Held(nn.Module):
    """Keeps a forward waiting in the middle until it is let go."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.reached, self.go = threading.Event(), threading.Event()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        assert self.go.wait(20)
        return self.inner(*args, **kwargs)


def attached(name: str) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model("bert")
    hybrid = attach(model, Recipe.from_dict({"name": name, **RECIPES[name]}), seed=0)
    for module in hybrid.modules.values():
        randomise(module)
    return model, hybrid


def while_in_a_forward(model: PreTrainedModel, name: str, do: Callable[[], Any]) -> Any:
    """`do()` while another thread is in the middle of a forward of the model; returns what it returns."""
    place: Any = model.get_submodule("bert.encoder.layer.1.output")
    held = place.dropout = Held(place.dropout)
    expected: list[Tensor] = []
    other = threading.Thread(
        target=lambda: expected.append(logits(model, tiny_inputs(name))), name="the other"
    )
    other.start()
    try:
        assert held.reached.wait(20)
        return do()
    finally:
        held.go.set()
        other.join()
        place.dropout = held.inner


@pytest.mark.parametrize("name", RECIPES)
def test_forwards_at_once_give_what_each_gives_alone(name: str) -> None:
    model, _ = attached(name)
    batches = [tiny_inputs("bert", length=4 + i, seed=i) for i in range(6)]
    expected = [logits(model, batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            found = list(pool.map(lambda batch: logits(model, batch), batches))
            for mine, alone in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, alone, rtol=0, atol=1e-6)
    before = {k: v.clone() for k, v in model.state_dict().items() if "autopeft" not in k}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", RECIPES)
def test_detach_under_another_thread_s_forward_is_refused_and_works_after_it(name: str) -> None:
    model, hybrid = attached(name)
    whole = logits(model, tiny_inputs("bert"))

    def detach() -> None:
        with pytest.raises(UsageError, match=rf"thread 'the other' is in a forward .*'{name}'.*deepcopy"):
            hybrid.detach()

    while_in_a_forward(model, "bert", detach)
    assert torch.equal(logits(model, tiny_inputs("bert")), whole)
    hybrid.detach()
    assert torch.equal(logits(model, tiny_inputs("bert")), logits(tiny_model("bert"), tiny_inputs("bert")))


def test_an_attach_while_another_thread_attaches_is_refused() -> None:
    model = tiny_model("bert")
    recipe = Recipe.from_dict({"name": "second", **RECIPES["activations"]})
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with changing(model, "attach 'first'"):
            inside.set()
            go.wait(20)

    other = threading.Thread(target=hold, name="the other")
    other.start()
    try:
        assert inside.wait(20)
        with pytest.raises(UsageError, match=r"thread 'the other' is attaching .* cannot attach 'second'"):
            attach(model, recipe)
    finally:
        go.set()
        other.join()
    with attach(model, recipe) as hybrid, pytest.raises(UsageError, match=r"already \('second'\)"):
        attach(hybrid.model, recipe)


def test_of_many_threads_that_attach_to_one_model_one_does() -> None:
    recipe = Recipe.from_dict({"name": "x", **RECIPES["activations"]})
    for _ in range(5):
        model, start = tiny_model("bert"), threading.Barrier(6)

        def work(number: int, model: Any = model, start: Any = start) -> Hybrid | UsageError:
            start.wait()
            try:
                return attach(model, recipe, seed=number)
            except UsageError as error:
                return error

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(work, range(6)))
        hybrids = [one for one in found if isinstance(one, Hybrid)]
        assert len(hybrids) == 1
        hybrids[0].detach()
        assert torch.equal(
            logits(model, tiny_inputs("bert")), logits(tiny_model("bert"), tiny_inputs("bert"))
        )


def test_a_thread_that_has_ended_is_in_no_forward_and_a_copy_has_none() -> None:
    forwards = Forwards("the hybrid 'x'")
    thread = threading.Thread(target=forwards.enter)
    thread.start()
    thread.join()
    forwards.refuse_others("detach it")
    forwards.enter()
    forwards.enter()
    forwards.leave()
    seen: list[str] = []

    def refuse() -> None:
        try:
            forwards.refuse_others("detach it")
        except UsageError as error:
            seen.append(str(error))

    def ask() -> None:
        thread = threading.Thread(target=refuse)
        thread.start()
        thread.join()

    ask()
    assert len(seen) == 1
    for copied in (copy.deepcopy(forwards), pickle.loads(pickle.dumps(forwards))):
        assert copied.depths == {}
    forwards.leave()
    ask()
    assert len(seen) == 1


def test_a_forward_that_was_cut_off_leaves_no_weights_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hybrid = attached("weights")
    before = {k: v.clone() for k, v in tiny_model("bert").state_dict().items()}

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    linear = next(m for m in model.modules() if isinstance(m, nn.Linear) and m._forward_pre_hooks)
    monkeypatch.setattr(linear, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**tiny_inputs("bert"))
    monkeypatch.undo()
    hybrid.detach()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_forward_after_one_that_was_cut_off_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight that was swapped in must not be taken for the backbone's own."""
    model, hybrid = attached("weights")
    randomise(hybrid.root)
    inputs = tiny_inputs("bert")
    expected = logits(model, inputs)

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    linear = next(m for m in model.modules() if isinstance(m, nn.Linear) and m._forward_pre_hooks)
    monkeypatch.setattr(linear, "forward", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
    monkeypatch.undo()
    assert torch.equal(logits(model, inputs), expected)
    asked = threading.Thread(target=model, kwargs=inputs)
    asked.start()
    asked.join(20)
    assert not asked.is_alive(), "it has its turn"
