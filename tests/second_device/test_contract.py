"""What every method does on the second device is what it does on the CPU: forward to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from contract.pairs import PAIRS, is_spared
from support import on_logits, on_scores
from support.cases import attach_case
from support.entries import choose_by_lot
from support.tiny import LogitsObjective, randomise, snapshot, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.hybrid import Hybrid, load

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
    """Whether only the slow tests have it: by default each case has one family, and all have their turn."""
    usual = [a for a in ONE_A_FAMILY if (case, a) in PAIRS and not is_spared(case, a, ONE_A_FAMILY)]
    return name != min(usual, key=lambda a: crc32(f"{a} {case}".encode()), default=None)


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(c, a, marks=pytest.mark.slow if _is_spared(c, a) else ()) for c, a in PAIRS],
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
    fresh = tiny_model(name).to(acc)
    load(fresh, tmp_path / "there")
    torch.testing.assert_close(fresh(**on(acc, inputs)).logits.cpu(), there_too, atol=1e-6, rtol=1e-6)

    # Merged, or taken off.
    if case not in COMPOSED and all(e.traits.mergeable for e in here.graph.entries.values()):
        out = here.merge()(**on(acc, inputs)).logits.cpu()
        torch.testing.assert_close(out, expected["after a step"], atol=3e-4, rtol=1e-4)
    else:
        here.detach()
        before = snapshot(tiny_model(name))
        assert [k for k, v in here.model.state_dict().items() if not torch.equal(v.cpu(), before[k])] == []
