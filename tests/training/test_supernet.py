"""The training of a supernet: what a step of a member moves, and at which rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.supernet import PLAN, by_name, member, of_noah, recipe, same
from support.training import encoded_task, tiny_bert

from autopeft.training import run_trial
from autopeft.training.shared_weights import SharedWeights
from autopeft.training.supernet import Member, train_supernet


def stepped(small: Member) -> tuple[SharedWeights, SharedWeights]:
    """The weights before and after one step of a member, with weight decay."""
    every = member(weight_decay=0.1)
    before = train_supernet(tiny_bert(), every.recipe, encoded_task(), PLAN, [every, every])
    return before, train_supernet(tiny_bert(), every.recipe, encoded_task(), PLAN, [small], shared=before)


def test_a_step_of_a_member_moves_its_own_part_and_nothing_else() -> None:
    before, after = stepped(member(lora=2, adapter=0, weight_decay=0.1))
    old, new = by_name(before), by_name(after)
    assert old.keys() == new.keys()
    moved = {key for key in old if not torch.equal(old[key], new[key])}
    assert not [key for key in moved if ".adapter." in key]
    lora = [key for key in moved if ".low." in key and not key.endswith(" step")]
    assert {key.rsplit(".", 1)[1] for key in lora} == {
        f"{name}{kind}" for name in "AB" for kind in ("", " exp_avg", " exp_avg_sq")
    }
    for key in lora:
        rows = key.rsplit(".", 1)[1].startswith("A")
        kept, changed = (t[2:] if rows else t[:, 2:] for t in (old[key], new[key]))
        assert torch.equal(kept, changed), "rows beyond the member's rank stay bit for bit"
        kept, changed = (t[:2] if rows else t[:, :2] for t in (old[key], new[key]))
        assert bool((kept != changed).any())
    steps = {key: float(value) for key, value in new.items() if key.endswith(" step")}
    assert {value for key, value in steps.items() if ".adapter." in key} == {2.0}
    assert {value for key, value in steps.items() if ".low." in key} == {3.0}
    assert any(key.startswith("head.") for key in moved)
    assert after.checkpoint.step == 3


def test_rows_of_noahs_modules_that_a_member_lacks_do_not_move() -> None:
    """Nor by decay or momentum: those of prompts, of an A that three B read, and of adapters."""
    large, data = of_noah(3, weight_decay=0.1), encoded_task()
    before = train_supernet(tiny_bert(), large.recipe, data, PLAN, [large] * 3)
    small = of_noah(1, weight_decay=0.1)
    after = train_supernet(tiny_bert(), large.recipe, data, PLAN, [small], shared=before)
    cut = 0
    for key, old in before.checkpoint.tensors.items():
        new = after.checkpoint.tensors[key]
        if not key.startswith("module.") or 3 not in old.shape:
            continue
        first, *rest = (t.unbind(old.shape.index(3)) for t in (old, new))
        assert not torch.equal(first[0], rest[0][0]), key
        assert torch.equal(torch.stack(first[1:]), torch.stack(rest[0][1:])), key
        cut += 1
    assert cut == 2 * (1 + 1 + 3 + 3)  # of each layer: rows, A, three B, and an adapter's two maps and bias


def test_members_that_are_whole_train_as_the_hybrid_does() -> None:
    data, model = encoded_task(), tiny_bert()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    plan, whole = replace(PLAN, steps=6), member()
    begun = train_supernet(model, whole.recipe, data, plan, [whole] * 2)
    shared = SharedWeights.from_files(begun.files())
    shared = train_supernet(model, whole.recipe, data, plan, [whole] * 4, shared=shared)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items()), "the backbone is as it was"
    expected = run_trial(tiny_bert(), recipe(), data, plan)
    assert list(shared.checkpoint.losses) == expected.train.losses
    scored = run_trial(
        tiny_bert(), recipe(), data, plan, resume=lambda hybrid: shared.cut(hybrid, same(hybrid))
    )
    assert scored.train.steps == 0
    assert scored.scores == expected.scores
    assert scored.losses["select"] == pytest.approx(expected.losses["select"], abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd"])
def test_other_optimizers_keep_what_can_be_cut(optimizer: str) -> None:
    by = {"optimizer": {"name": optimizer}}
    whole = member(**by)
    members = [member(lora=2, **by), whole, member(lora=4, adapter=1, **by), member(ia3=False, **by)]
    shared = train_supernet(tiny_bert(), whole.recipe, encoded_task(), PLAN, members)
    assert shared.checkpoint.step == 4


def test_every_rate_is_multiplied() -> None:
    """The head's own, too: a fifth of them, or recipes with a fifth."""
    groups = {"head": {"learning_rate": 5e-2}, "low": {"learning_rate": 2e-2}}
    slow = {"head": {"learning_rate": 1e-2}, "low": {"learning_rate": 4e-3}}
    fast, slowed = member(groups=groups), member(groups=slow, learning_rate=2e-3)
    found = [
        train_supernet(tiny_bert(), whole.recipe, encoded_task(), PLAN, [whole] * 3, rate=rate)
        for whole, rate in ((fast, 0.2), (slowed, 1.0))
    ]
    assert list(found[0].checkpoint.losses) == pytest.approx(list(found[1].checkpoint.losses), rel=1e-6)
