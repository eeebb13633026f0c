from __future__ import annotations

import pytest
import torch

from autopeft.devices import count, device_named, full_precision, generator, generators_kept, label
from autopeft.errors import UsageError
from autopeft.training import TrainingPlan

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cude", "torch knows no device 'cude'.*Did you mean 'cuda'.*cpu"),
        ("cuda:9", "no device 'cuda:9' here; there is cpu"),
        ("meta", "torch knows no device 'meta' to compute on"),
        ("cpu:x", "torch knows no device 'cpu:x'"),
    ],
)
def test_what_is_not_there_is_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=said):
        device_named(name)
    with pytest.raises(UsageError, match=said):
        TrainingPlan(steps=1, device=name).torch_device()


def test_auto_is_the_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found: torch.device | None = None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert (device_named("auto"), count()) == (CPU, 0)
    found = torch.device("cuda")
    assert (device_named("auto"), count()) == (found, 2)
    found = torch.device("mps")  # by name alone
    assert (device_named("auto"), count()) == (CPU, 0)


def test_a_processor_has_a_name_and_no_precision_of_its_own() -> None:
    assert label(CPU) == "cpu"
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_generators_draw_what_a_seed_gives_and_are_put_back() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with generators_kept(CPU, seed=4):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3, generator=generator(CPU, 4)), first)
    assert torch.equal(torch.rand(3), expected)
