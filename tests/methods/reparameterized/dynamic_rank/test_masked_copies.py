from __future__ import annotations

import torch
from autopeft.methods.reparameterized.dynamic_rank.capaboost import MaskedCopies, Masks, entries_in_use

MASKS = Masks(0, "encoder.0.q", "A", 3, 8, 2, 0.5, "random")


def test_copies_are_one_matrix_under_each_mask() -> None:
    matrix = torch.randn(3, 8)
    copies = MaskedCopies(MASKS, matrix)
    assert torch.equal(copies(), matrix * MASKS.draw())
    assert copies.values.numel() == entries_in_use(MASKS) == int(MASKS.draw().any(0).sum()) < 24
    assert set(copies.state_dict()) == {"values"}


def test_an_entry_gets_the_gradients_of_all_copies_that_hold_it() -> None:
    copies = MaskedCopies(MASKS, torch.zeros(3, 8))
    copies().sum().backward()
    holders = MASKS.draw().sum(0).flatten()
    assert torch.equal(copies.values.grad, holders[holders > 0].float())


def test_copies_take_the_type_of_the_values() -> None:
    assert MaskedCopies(MASKS, torch.ones(3, 8)).to(torch.bfloat16)().dtype == torch.bfloat16


def test_each_part_of_the_key_gives_other_masks() -> None:
    keys = [MASKS, MASKS._replace(seed=1), MASKS._replace(site="encoder.1.q"), MASKS._replace(name="B")]
    drawn = [m.draw() for m in keys]
    assert torch.equal(drawn[0], MASKS.draw())
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_torchs_default_device_does_not_matter_to_the_masks() -> None:
    masks = Masks(0, "encoder.0.q", "A", 4, 8, 2, 0.5, "random")
    with torch.device("meta"):
        drawn = masks.draw()
        copies = MaskedCopies(masks, torch.empty(4, 8))
    assert torch.equal(drawn, masks.draw())
    assert copies.values.numel() == entries_in_use(masks)
