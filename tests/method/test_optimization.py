from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from autopeft.errors import MethodError
from autopeft.method import DecayTarget, decay, decay_targets, no_such_part, parts_of, shortened


class Two(nn.Module):
    def __init__(self, targets: Mapping[str, DecayTarget] | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        self.targets = targets or {}

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        return {getattr(self, name): target for name, target in self.targets.items()}


def test_a_rate_for_longer_trainings_keeps_the_reach_of_noise() -> None:
    """√n steps' worth of it; and in longer ones it is as given, to the last bit."""
    assert [shortened(100, n) for n in (100, 101, 10**6)] == [1.0, 1.0, 1.0]
    assert [n**0.5 * shortened(100, n) for n in (1, 4, 50)] == pytest.approx([10.0] * 3)
    assert shortened(100, 0.5) == shortened(100, 1) == 10.0
    assert shortened(0, 7) == 1.0


def test_only_targets_other_than_zero_are_told() -> None:
    module = Two({"a": 0.0, "b": None})
    assert decay_targets([module, nn.Linear(2, 2)]) == {id(module.b): None}
    module = Two({"a": 1.0, "b": torch.tensor([1.0, 2.0, 3.0])})
    found = decay_targets([module])
    assert found[id(module.a)] == 1.0
    assert torch.equal(torch.as_tensor(found[id(module.b)]), torch.tensor([1.0, 2.0, 3.0]))


def test_targets_of_strangers_and_of_another_shape_are_refused() -> None:
    module = Two()
    module.decays = lambda: {nn.Parameter(torch.ones(7)): 1.0}  # type: ignore[method-assign]
    with pytest.raises(MethodError, match=r"`decays` of Two .* shape \(7,\) that is none of its own"):
        decay_targets([module])
    with pytest.raises(MethodError, match=r"shape \(2,\) for a parameter of shape \(3,\)"):
        decay_targets([Two({"b": torch.ones(2)})])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decay_goes_towards_the_target_and_stays_there(dtype: torch.dtype) -> None:
    target = torch.rand(100).to(dtype)
    parameter = nn.Parameter(target.clone())
    decay(parameter, target, 0.3)
    assert torch.equal(parameter, target)
    with torch.no_grad():
        parameter.add_(1)
    decay(parameter, target, 0.25)
    torch.testing.assert_close(parameter.detach(), target + 0.75, atol=0.02, rtol=0)


def test_parts_are_those_of_the_module_and_its_named_groups() -> None:
    class Parted(Two):
        def parts(self) -> dict[str, list[nn.Parameter]]:
            return {"first": [self.a], "empty": []}

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": [self.a]}, {"name": "second", "params": [self.b]}]

    module = Parted()
    found = {name: [id(p) for p in parameters] for name, parameters in parts_of(module).items()}
    assert found == {"first": [id(module.a)], "second": [id(module.b)]}
    assert parts_of(Two()) == {}


def test_a_wrong_part_is_told_with_those_that_there_are() -> None:
    text = no_such_part("lora", "upp", ("down", "up"))
    assert text == (
        "'lora' has no part 'upp'. Did you mean 'up'? Write 'lora' for all of it, or lora.down, lora.up."
    )
    assert "is not divided into parts" in no_such_part("ia3", "up", ())
