from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training import Bag, FakeHybrid, encoded_task, tiny_bert
from torch import nn

from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.training.errors import PhaseError
from autopeft.training.loop import train
from autopeft.training.phases import Phase, Span, Stage, spans_of, stages_of, step_counts, values_of
from autopeft.training.plan import TrainingPlan

OWN: frozenset[Any] = frozenset({"own"})


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


class Plain(nn.Linear):
    """Has no phases."""

    log: list[tuple[int, int]]

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.log = []

    def before_step(self, step: int, total: int) -> None:
        self.log.append((step, total))


class PhasedBag(Bag):
    """Adds the vectors of two-phase modules to the mean."""

    def __init__(self, phased: TwoPhases, *more: TwoPhases) -> None:
        super().__init__()
        self.phased, self.more = phased, nn.ModuleList(more)
        self.rows: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        self.rows.append(len(input_ids))
        mask = attention_mask[..., None]
        mean = (self.embedding[input_ids] * mask).sum(1) / mask.sum(1) + self.phased.weight
        mean = mean + sum(module.weight for module in self.more)
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


SPAN = Span(3, begins=True)


def stage(phase: Phase, owner: str | None = "a", apart: tuple[str, ...] = ()) -> Stage:
    return Stage(phase, owner, frozenset(apart), steps=3, own=SPAN, others=SPAN, first=True, alone=False)


def test_without_phases_there_is_one_of_everything() -> None:
    (only,) = stages_of({"a": nn.Linear(1, 1)}, 5)
    assert (only.owner, only.phase, only.steps, only.own.steps) == (None, Phase("train"), 5, 5)
    assert only.label() == "training"
    groups = [{"name": n, "params": [1]} for n in ("a", "b.x", "head")]
    assert only.groups(groups) == groups


def test_groups_of_an_entry_are_its_own() -> None:
    groups = [{"name": n, "params": [1]} for n in ("a", "a.mask", "ab", "head")]
    chosen = stage(Phase("p", trains=frozenset({"own"}))).groups(groups)
    assert [g["name"] for g in chosen] == ["a", "a.mask"]


def test_the_head_and_its_parts_are_the_head() -> None:
    groups = [{"name": n, "params": [1]} for n in ("a", "header", "head", "head.hidden")]
    for trains, names in (("head", ["head", "head.hidden"]), ("others", ["header"])):
        chosen = stage(Phase("p", trains=frozenset({trains}))).groups(groups)  # type: ignore[arg-type]
        assert [g["name"] for g in chosen] == names

    values = {"own": torch.zeros(1), "head": torch.zeros(1), "hidden": torch.zeros(1)}
    names = {"a": "own", "head": "head", "head.hidden": "hidden"}
    told = [{"name": name, "params": [values[key]]} for name, key in names.items()]
    found = [id(tensor) for _, tensor in values_of({}, told)]
    assert found == [id(values["head"]), id(values["hidden"])]


def test_entries_with_phases_of_their_own_are_nobody_s_others() -> None:
    groups = [{"name": n, "params": [1]} for n in ("a", "b", "b.mask", "c", "head")]
    chosen = stage(Phase("p"), apart=("b",)).groups(groups)
    assert [g["name"] for g in chosen] == ["a", "c", "head"]


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ((Phase("a"), Phase("a")), "different names"),
        ((Phase("a", share=0),), "must be positive"),
        ((Phase("a", trains=frozenset()),), "at least one of own, others, head"),
        ((Phase("a", trains=frozenset({"all"})),), "at least one of own, others, head"),  # type: ignore[arg-type]
        ((Phase("a", split="test"),), "may train on 'train' or 'select'"),
        ((Phase("a", split="valid"),), "may train on 'train' or 'select'"),
        ((Phase("a", held_out=1.0),), "from 0 to below 1"),
        ((Phase("a", held_out=-0.1),), "from 0 to below 1"),
        ((Phase("a", outer=lambda step: None),), "needs `held_out` above 0"),
        (
            (Phase("a", held_out=0.5, outer=lambda step: None, run=lambda session: None),),
            "it has one of them",
        ),
    ],
)
def test_malformed_phases_are_refused(phases: tuple[Phase, ...], said: str) -> None:
    with pytest.raises(PhaseError, match=said):
        train(hybrid(TwoPhases(*phases)), encoded_task(), TrainingPlan(steps=4, device="cpu"))


def test_the_phases_of_two_entries_follow_each_other() -> None:
    """In the order of the recipe, with equal parts of the steps; the one that waits and the one that is done
    stay as they are."""

    class Watch(TwoPhases):
        other: list[TwoPhases]

        def after_step(self, step: int, total: int) -> None:
            self.log.append((step, total, self.other[0].weight.detach().clone()))

    one, two = Watch(Phase("a", 3, trains=OWN), Phase("b", 1)), Watch(Phase("a"))
    one.other, two.other = [two], [one]
    model = PhasedBag(one, two)
    fake = FakeHybrid(model, {"one": one, "two": two, "adapter": model.adapter})
    said: list[tuple[str, int]] = []
    found = train(
        fake, encoded_task(), TrainingPlan(steps=14, device="cpu"), on_phase=lambda *a: said.append(a)
    )
    assert said == [("a of one", 5), ("b of one", 2), ("a of two", 7)]
    assert [entry[:2] for entry in one.log if len(entry) == 3] == [(i, 7) for i in range(7)]
    assert [entry[:2] for entry in two.log if len(entry) == 3] == [(i, 7) for i in range(7)]
    assert all(torch.equal(entry[2], torch.zeros(6)) for entry in one.log if len(entry) == 3)
    assert all(torch.equal(entry[2], one.weight) for entry in two.log if len(entry) == 3)
    assert bool(one.weight.any())
    assert found.steps == 14


def test_outputs_of_two_entries_have_their_names() -> None:
    one, two = TwoPhases(), TwoPhases()
    model = PhasedBag(one, two)
    fake = FakeHybrid(model, {"one": one, "two": two, "adapter": model.adapter})
    assert sorted(train(fake, encoded_task(), TrainingPlan(steps=6, device="cpu")).outputs) == [
        "one.look", "two.look",
    ]  # fmt: skip


def test_an_entry_that_starts_anew_leaves_what_another_has_found() -> None:
    one, two = TwoPhases(Phase("a", trains=OWN)), TwoPhases(Phase("b"), Phase("c", anew=True))
    model = PhasedBag(one, two)
    fake = FakeHybrid(model, {"one": one, "two": two, "adapter": model.adapter})
    seen: list[torch.Tensor] = []
    two.own = (Phase("b"), Phase("c", anew=True, begin=lambda: seen.append(one.weight.detach().clone())))
    train(fake, encoded_task(), TrainingPlan(steps=9, device="cpu"))
    assert torch.equal(seen[0], one.weight)
    assert bool(seen[0].any())


@pytest.mark.parametrize("first", ["autolora", "sora", "periodic_lora"])
@pytest.mark.parametrize("second", ["autolora", "sora", "periodic_lora"])
def test_real_methods_with_phases_train_in_one_hybrid(first: str, second: str) -> None:
    made = Recipe.from_dict(
        {"name": "r", "layers": [{"attach": [{first: {"sites": ["q"]}}, {second: {"sites": ["v"]}}]}]}
    )
    with attach(tiny_bert(), made, seed=0) as pair:
        found = train(pair, encoded_task(), TrainingPlan(steps=12, batch_size=16, device="cpu"))
        assert found.steps == 12
        outputs = pair.model(input_ids=torch.arange(8)[None]).logits
        assert bool(outputs.isfinite().all())


def test_a_phase_that_trains_nothing_is_refused() -> None:
    with pytest.raises(PhaseError, match="trains nothing"):
        stage(Phase("p", trains=frozenset({"others"}))).groups([{"name": "a", "params": [1]}])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 300))
def test_steps_follow_the_shares_and_add_up(shares: list[float], spare: int) -> None:
    total = len(shares) + spare
    steps = step_counts(shares, total)
    assert sum(steps) == total
    for share, n in zip(shares, steps, strict=True):
        assert abs(n - 1 - spare * share / sum(shares)) <= 1


def test_too_few_steps_for_the_phases() -> None:
    with pytest.raises(PhaseError, match="2 phases need at least 2 steps"):
        step_counts([1.0, 1.0], 1)


# Phases that start anew
# ---------------------------------------------------------------------------------------------------


class Anew(TwoPhases):
    """Has a buffer that every step moves, and a vector that it does not give to the optimizer."""

    def __init__(self, *phases: Phase) -> None:
        super().__init__(*phases)
        self.seen: list[dict[str, torch.Tensor]] = []
        self.held = nn.Parameter(torch.zeros(6))
        self.register_buffer("moved", torch.zeros(1))
        self.moved: torch.Tensor
        self.model: list[nn.Module] = []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight]}]

    def look(self) -> None:
        self.seen.append({k: v.detach().clone() for k, v in self.model[0].state_dict().items()})

    def after_step(self, step: int, total: int) -> None:
        self.moved = self.moved + 1
        with torch.no_grad():
            self.held += 1


def run_anew(trains: frozenset[Any], steps: int = 6, **options: Any) -> tuple[Anew, dict[str, torch.Tensor]]:
    """A phase of everything and then one that starts anew; the values before the first."""
    phased = Anew()
    every = frozenset({"own", "others", "head"})
    phased.own = (Phase("a", trains=every), Phase("b", trains=trains, anew=True, begin=phased.look))
    fake = hybrid(phased, learning_rate=0.05)
    phased.model.append(fake.model)
    start = {name: t.detach().clone() for name, t in fake.model.state_dict().items()}
    plan = TrainingPlan(steps=steps, batch_size=16, device="cpu", **options)
    train(fake, encoded_task(), plan)
    return phased, start


def test_a_phase_that_starts_anew_has_the_first_values_of_all_that_it_trains() -> None:
    phased, start = run_anew(frozenset({"own", "others", "head"}))
    (seen,) = phased.seen
    changed = {name for name in start if not torch.equal(seen[name], start[name])}
    assert changed == {"phased.held"}, "what the module trains itself is its own to keep"
    end = phased.model[0].state_dict()
    assert not torch.equal(end["head.weight"], start["head.weight"])
    assert not torch.equal(end["adapter.weight"], start["adapter.weight"])


def test_what_it_does_not_train_stays_where_the_phase_before_left_it() -> None:
    phased, start = run_anew(frozenset({"others"}))
    (seen,) = phased.seen
    changed = {name for name in start if not torch.equal(seen[name], start[name])}
    assert changed == {"phased.weight", "phased.held", "phased.moved", "head.weight", "head.bias"}


def test_it_trains_as_if_nothing_had_come_before() -> None:
    """From the first values, with a new optimizer and schedule, and the rows in their first order."""
    phased = Anew()
    phased.own = (Phase("a"), Phase("b", anew=True))
    losses = train(hybrid(phased), encoded_task(), TrainingPlan(steps=10, batch_size=16, device="cpu")).losses
    assert losses[5:] == losses[:5]


def test_events_count_from_the_phase_that_starts_anew() -> None:
    phased, _ = run_anew(frozenset({"own"}))
    assert phased.log == [(0, 3), (1, 3), (2, 3)] * 2
    stopped, _ = run_anew(frozenset({"own"}), steps=12, eval_every=1, patience=1)
    counted = [step for step, _ in stopped.log]
    assert counted.count(0) == 2
    assert len(counted) < 12


def test_spans() -> None:
    phases = [Phase("a"), Phase("b"), Phase("c", anew=True), Phase("d"), Phase("e", anew=True)]
    begins = [True, False, True, False, True]
    spans = spans_of(phases, [1, 2, 3, 4, 5], "own")
    assert spans == [Span(steps, first) for steps, first in zip([3, 3, 7, 7, 5], begins, strict=True)]
    assert [span.steps for span in spans_of(phases[2:], [3, 4, 5], "own")] == [7, 7, 5]
    phases[2] = Phase("c", anew=True, trains=frozenset({"own"}))
    assert [span.steps for span in spans_of(phases, [1, 2, 3, 4, 5], "others")] == [10, 10, 10, 10, 5]


def test_events_of_entries_without_phases_count_over_those_of_all_others() -> None:
    one, two = TwoPhases(Phase("a"), Phase("b")), TwoPhases(Phase("c"), Phase("d", anew=True))
    model, plain = PhasedBag(one, two), Plain(6, 6)
    model.adapter = plain
    fake = FakeHybrid(model, {"one": one, "two": two, "plain": plain})
    train(fake, encoded_task(), TrainingPlan(steps=8, batch_size=16, device="cpu"))
    assert one.log == [(i, 4) for i in range(4)]
    assert two.log == [(0, 2), (1, 2)] * 2
    assert plain.log == [(i, 6) for i in range(6)] + [(0, 2), (1, 2)]


def test_a_phase_may_start_from_before_another_one() -> None:
    """The third returns to where the second began, which is where the first ended."""
    phased = Anew()
    phased.own = (
        Phase("a"),
        Phase("b", begin=phased.look),
        Phase("c", anew="b", begin=phased.look),
        Phase("d", anew=True, begin=phased.look),
    )
    fake = hybrid(phased, learning_rate=0.05)
    phased.model.append(fake.model)
    start = {name: t.detach().clone() for name, t in fake.model.state_dict().items()}
    train(fake, encoded_task(), TrainingPlan(steps=8, batch_size=16, device="cpu"))
    second, third, fourth = phased.seen
    assert {k for k in second if not torch.equal(second[k], third[k])} == {"phased.held"}
    assert not torch.equal(second["head.weight"], start["head.weight"])
    assert {k for k in start if not torch.equal(start[k], fourth[k])} == {"phased.held"}
    assert [step for step, _ in phased.log] == [0, 1, 2, 3, 0, 1, 0, 1]


def test_it_starts_from_before_no_other_than_an_earlier_one() -> None:
    for name in ("b", "c", "x"):
        phased = TwoPhases(Phase("a"), Phase("b", anew=name), Phase("c"))
        with pytest.raises(PhaseError, match=rf"`anew` of phase 'b' names an earlier one, but got '{name}'"):
            train(hybrid(phased), encoded_task(), TrainingPlan(steps=6, device="cpu"))


def test_what_begin_puts_in_place_is_kept() -> None:
    phased = Anew()

    def grow() -> None:
        phased.weight = nn.Parameter(torch.ones(1))

    phased.own = (Phase("a"), Phase("b", anew=True, begin=grow), Phase("c", anew=True, begin=phased.look))
    fake = hybrid(phased)
    phased.model.append(fake.model)
    train(fake, encoded_task(), TrainingPlan(steps=6, batch_size=16, device="cpu"))
    # Of another shape than at first, it has no first value to go back to.
    assert phased.seen[0]["phased.weight"].shape == (1,)
    assert float(phased.seen[0]["phased.weight"]) != 1


@pytest.mark.parametrize(
    ("attached", "phases"),
    [
        (["lora"], [("training", 8)]),
        (
            ["autolora", {"lora": {"sites": ["down"]}}],
            [("search of autolora", 4), ("retrain of autolora, from the first values", 4)],
        ),
        (
            [{"periodic_lora": {"stages": 2}}],
            [("stage-1 of periodic_lora", 4), ("stage-2 of periodic_lora", 4)],
        ),
        (["laplace_lora"], [("training", 8), ("conclusion", 0)]),
    ],
)
def test_phases_are_told_by_name(attached: list[Any], phases: list[tuple[str, int]]) -> None:
    told: list[tuple[str, int]] = []
    with attach(tiny_bert(), Recipe.from_dict({"name": "r", "layers": [{"attach": attached}]})) as found:
        plan = TrainingPlan(steps=8, batch_size=16, device="cpu")
        train(found, encoded_task(), plan, on_phase=lambda name, steps: told.append((name, steps)))
    assert told == phases


def test_a_calibration_is_told_where_there_is_one() -> None:
    told: list[tuple[str, int]] = []
    recipe = Recipe.from_dict({"name": "r", "model": [{"fish_mask": {"keep": "1%", "samples": 4}}]})
    with attach(tiny_bert(), recipe) as found:
        plan = TrainingPlan(steps=2, batch_size=16, device="cpu")
        for _ in range(2):  # the second training has its mask already
            train(found, encoded_task(), plan, on_phase=lambda name, steps: told.append((name, steps)))
    assert told == [("calibration", 0), ("training", 2), ("training", 2)]
