"""What every method does on the second device is what it does on the CPU: forward to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from contract.pairs import PAIRS, is_first_way, is_spared
from support import on_logits, on_scores
from support.cases import BY_TASK, TASKS, attach_case, recipe_of
from support.entries import choose_by_lot
from support.selection import selected
from support.tiny import LogitsObjective, randomise, snapshot, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.hybrid import Hybrid, attach, load

# Their merging is tried on the CPU.
COMPOSED = ("gate", "chain", "route", "route-sequence", "fuse", "fuse-loras", "mole")
LSTM = "torch has the LSTM of other devices than the CPU in kernels of theirs: it is tried on CUDA alone"
DRAWN = (
    "sensitivity",
    "sensitivity-adapter",
)  # they measure with the backbone's dropout, which is drawn there
ONE_A_FAMILY = ("bert", "llama", "t5", "vit")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _methods_of_tests() -> Iterator[None]:
    with on_logits.registered(), on_scores.registered():
        yield


def on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def trained(case: str, name: str, device: torch.device) -> tuple[Hybrid, dict[str, Any]]:
    """A hybrid that has taken a step on a device, and all that was computed on the way, on the CPU."""
    model: Any = tiny_model(name).to(device)
    hybrid = attach_case(model, case)
    if hybrid.needs_prepare:
        rows = [
            on(device, {**tiny_inputs(name, batch=1, seed=seed), "labels": torch.tensor([seed % 2])})
            for seed in range(4)
        ]
        hybrid.prepare(rows, LogitsObjective(model))
    choose_by_lot(hybrid)
    randomise(hybrid.root)
    hybrid.refresh()
    inputs, seen = on(device, tiny_inputs(name, pad=2)), dict[str, Any]()
    out = model(**inputs).logits
    seen["logits"] = out
    learnt = [(n, p) for n, p in hybrid.root.named_parameters() if p.requires_grad]
    if learnt:
        optimizer = torch.optim.SGD([p for _, p in learnt], lr=1e-2)
        out.pow(2).sum().backward()
        seen |= {f"gradient of {n}": p.grad.clone() for n, p in learnt if p.grad is not None}
        optimizer.step()
        hybrid.refresh()
    seen["after a step"] = model(**inputs).logits
    return hybrid, {k: v.detach().cpu() for k, v in seen.items()}


def _is_spared(case: str, name: str) -> bool:
    """Whether only the slow tests have it: by default a method or composition is used in one way, on one
    family, and all families have their turn."""
    if not is_first_way(case):
        return True
    usual = [a for a in ONE_A_FAMILY if (case, a) in PAIRS and not is_spared(case, a, ONE_A_FAMILY)]
    return name != min(usual, key=lambda a: crc32(f"{a} {case}".encode()), default=None)


@pytest.mark.parametrize(
    ("case", "name"),
    selected([pytest.param(c, a, marks=pytest.mark.slow if _is_spared(c, a) else ()) for c, a in PAIRS]),
)
def test_it_computes_learns_and_is_kept_as_on_the_cpu(
    case: str, name: str, acc: torch.device, tmp_path: Path
) -> None:
    if case == "p-tuning":
        pytest.skip(LSTM)
    there, expected = trained(case, name, CPU)
    here, found = trained(case, name, acc)
    assert found.keys() == expected.keys()
    if case in DRAWN:
        expected = found
    assert torch.equal(found["logits"], expected["logits"])
    # Backward, torch composes some operations of this device that are one on the CPU, such as that of SiLU.
    for key, value in found.items():
        atol = 2e-5 * max(1.0, expected[key].abs().max().item())  # rounding is of the largest terms of a sum
        torch.testing.assert_close(
            value, expected[key], atol=atol, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
        )
    assert {p.device.type for p in here.model.parameters()} == {acc.type}

    # Saved on one device, loaded on the other.
    inputs = tiny_inputs(name, pad=2)
    here.save(tmp_path / "here")
    fresh = tiny_model(name)
    load(fresh, tmp_path / "here")
    torch.testing.assert_close(fresh(**inputs).logits, expected["after a step"], atol=2e-5, rtol=1e-4)
    there.save(tmp_path / "there")
    there_too = there.model(**inputs).logits

    # Taken off; and merged, where that is possible.
    here.detach()
    before, model = snapshot(tiny_model(name)), here.model
    assert [k for k, v in model.state_dict().items() if not torch.equal(v.cpu(), before[k])] == []
    again = load(model, tmp_path / "there")
    torch.testing.assert_close(model(**on(acc, inputs)).logits.cpu(), there_too, atol=1e-6, rtol=1e-6)
    if case not in COMPOSED and all(e.traits.mergeable for e in here.graph.entries.values()):
        out = again.merge()(**on(acc, inputs)).logits.cpu()
        torch.testing.assert_close(out, there_too, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("case", BY_TASK)
def test_rows_of_several_tasks_are_answered_as_on_the_cpu(case: str, acc: torch.device) -> None:
    found = []
    for device in (CPU, acc):
        model: Any = tiny_model("t5").to(device)
        hybrid = attach(model, recipe_of(case), seed=0)
        randomise(hybrid.root, std=0.3)
        hybrid.refresh()
        inputs = {**tiny_inputs("t5", batch=4, pad=2), "task_id": torch.tensor([0, 2, 1, 1])}
        out = model.train(mode=False)(**on(device, inputs)).logits
        hybrid.task = TASKS[0]
        alone = model(**on(device, tiny_inputs("t5"))).logits
        found.append((out.detach().cpu(), alone.detach().cpu()))
    assert all(map(torch.equal, *found))
