from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training import Bag, FakeHybrid, encoded_task
from torch import nn

from autopeft.training.errors import PhaseError
from autopeft.training.loop import train
from autopeft.training.phases import Phase, phases_of, steps_of, trained_groups
from autopeft.training.plan import TrainingPlan


class TwoPhases(nn.Module):
    """First its own vector on *select*, then all the rest on *train*; remembers what happened."""

    def __init__(self, *phases: Phase) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6))
        self.log: list[Any] = []
        self.own = phases or (
            Phase("look", 1, split="select", trains=frozenset({"own"}), output=self.weight_now),
            Phase("learn", 2, trains=frozenset({"others", "head"}), begin=lambda: self.log.append("begin")),
        )

    def phases(self) -> tuple[Phase, ...]:
        return self.own

    def weight_now(self) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self.weight.clone()

    def before_step(self, step: int, total: int) -> None:
        self.log.append((step, total))


class PhasedBag(Bag):
    """Adds the vector of a two-phase module to the mean."""

    def __init__(self, phased: TwoPhases) -> None:
        super().__init__()
        self.phased = phased
        self.rows: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        self.rows.append(len(input_ids))
        mask = attention_mask[..., None]
        mean = (self.embedding[input_ids] * mask).sum(1) / mask.sum(1) + self.phased.weight
        return (self.head(torch.tanh(self.adapter(mean))),)


def hybrid(phased: TwoPhases, **training: Any) -> FakeHybrid:
    model = PhasedBag(phased)
    return FakeHybrid(model, {"phased": phased, "adapter": model.adapter}, training)


def test_two_phases_each_train_their_part_on_their_split() -> None:
    phased = TwoPhases()
    fake = hybrid(phased)
    start = {name: p.detach().clone() for name, p in fake.model.named_parameters()}
    data = encoded_task(train=48, select=7)
    result = train(fake, data, TrainingPlan(steps=9, batch_size=16, device="cpu"))

    assert result.steps == 9
    assert fake.model.rows == [7, 7, 7, 16, 16, 16, 16, 16, 16]  # type: ignore[attr-defined]
    looked = result.outputs["look"]
    assert not torch.equal(looked, start["phased.weight"])
    assert torch.equal(phased.weight, looked), "the second phase must not move what only the first trains"
    assert not torch.equal(fake.model.adapter.weight, start["adapter.weight"])
    assert torch.equal(fake.model.embedding, start["embedding"])


def test_events_fire_on_the_modules_that_the_phase_trains() -> None:
    phased = TwoPhases()
    train(hybrid(phased), encoded_task(), TrainingPlan(steps=6, batch_size=16, device="cpu"))
    assert phased.log == [(0, 6), (1, 6), "begin"]


def test_requires_grad_is_restored() -> None:
    fake = hybrid(TwoPhases())
    before = {name: p.requires_grad for name, p in fake.model.named_parameters()}
    train(fake, encoded_task(), TrainingPlan(steps=4, batch_size=16, device="cpu"))
    assert {name: p.requires_grad for name, p in fake.model.named_parameters()} == before


def test_each_phase_has_a_schedule_of_its_own() -> None:
    rates: list[float] = []

    class Watch(TwoPhases):
        def after_step(self, step: int, total: int) -> None:
            rates.append(float(self.weight.detach().abs().max()))

    own = frozenset({"own"})
    watch = Watch(Phase("a", trains=own), Phase("b", trains=own))
    train(hybrid(watch, warmup=0.5, learning_rate=0.1), encoded_task(), TrainingPlan(steps=8, device="cpu"))
    # Adam's first step of a new optimizer moves every entry by the rate, which warm-up has at a third.
    assert rates[0] == pytest.approx(0.1 / 3, rel=1e-3)
    assert len(rates) == 8


def test_without_phases_there_is_one_of_everything() -> None:
    owner, phases = phases_of({"a": nn.Linear(1, 1)})
    assert owner is None
    assert phases == [Phase("train")]
    groups = [{"name": n, "params": [1]} for n in ("a", "b.x", "head")]
    assert trained_groups(phases[0], owner, groups) == groups


def test_groups_of_an_entry_are_its_own() -> None:
    groups = [{"name": n, "params": [1]} for n in ("a", "a.mask", "ab", "head")]
    chosen = trained_groups(Phase("p", trains=frozenset({"own"})), "a", groups)
    assert [g["name"] for g in chosen] == ["a", "a.mask"]


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ((Phase("a"), Phase("a")), "different names"),
        ((Phase("a", share=0),), "must be positive"),
        ((Phase("a", trains=frozenset()),), "at least one of own, others, head"),
        ((Phase("a", trains=frozenset({"all"})),), "at least one of own, others, head"),  # type: ignore[arg-type]
        ((Phase("a", split="test"),), "may train on 'train' or 'select'"),
        ((Phase("a", split="valid"),), "may train on 'train' or 'select'"),
    ],
)
def test_malformed_phases_are_refused(phases: tuple[Phase, ...], said: str) -> None:
    with pytest.raises(PhaseError, match=said):
        train(hybrid(TwoPhases(*phases)), encoded_task(), TrainingPlan(steps=4, device="cpu"))


def test_two_entries_with_phases_are_refused() -> None:
    with pytest.raises(PhaseError, match="'a', 'b' each train in phases"):
        phases_of({"a": TwoPhases(), "b": TwoPhases()})


def test_a_phase_that_trains_nothing_is_refused() -> None:
    with pytest.raises(PhaseError, match="trains nothing"):
        trained_groups(Phase("p", trains=frozenset({"others"})), "a", [{"name": "a", "params": [1]}])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 300))
def test_steps_follow_the_shares_and_add_up(shares: list[float], spare: int) -> None:
    phases = [Phase(str(i), share) for i, share in enumerate(shares)]
    total = len(phases) + spare
    steps = steps_of(phases, total)
    assert sum(steps) == total
    for share, n in zip(shares, steps, strict=True):
        assert abs(n - 1 - spare * share / sum(shares)) <= 1


def test_too_few_steps_for_the_phases() -> None:
    with pytest.raises(PhaseError, match="2 phases need at least 2 steps"):
        steps_of([Phase("a"), Phase("b")], 1)
