from __future__ import annotations

import torch

from autopeft.nn import generator_of

PERMUTATION = [4, 3, 5, 7, 2, 1, 6, 0]
UNIFORM = [0.6293511, 0.4471391, 0.3323307]


def test_each_seed_and_name_has_a_stream_of_its_own_that_repeats() -> None:
    names = [(0, "q", 0), (0, "q", 1), (0, "v", 0), (1, "q", 0), (0, "q")]
    streams = [torch.rand(8, generator=generator_of(*n)) for n in names]
    for i, stream in enumerate(streams):
        assert torch.equal(stream, torch.rand(8, generator=generator_of(*names[i])))
        assert not any(torch.equal(stream, other) for other in streams[:i])


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(8, generator=generator_of(3, "x"))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_those_of_earlier_versions() -> None:
    """What is drawn instead of saved must stay the same: if torch or this changes, saved hybrids are lost."""
    generator = generator_of(0, "encoder-0-q", "A")
    assert torch.randperm(8, generator=generator).tolist() == PERMUTATION
    torch.testing.assert_close(torch.rand(3, generator=generator), torch.tensor(UNIFORM), atol=1e-6, rtol=0)
