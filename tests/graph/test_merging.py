"""What the graph says of merging is what merging finds."""

from __future__ import annotations

import pytest
from support.cases import CASES, attach_case
from support.tiny import ARCHITECTURES, tiny_model

from autopeft.errors import CompositionError, UsageError
from autopeft.graph import unmergeable


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name == "bert" else pytest.mark.slow) for name in ARCHITECTURES],
)
def test_the_graph_knows_what_merges(architecture: str) -> None:
    seen: dict[bool, int] = {True: 0, False: 0}
    for case in CASES:
        model = tiny_model(architecture)
        try:
            hybrid = attach_case(model, case)
        except UsageError:  # this backbone cannot take it
            continue
        reason = unmergeable(hybrid.graph)
        seen[reason is None] += 1
        if reason is None:
            hybrid.merge()
        else:
            with pytest.raises(CompositionError):
                hybrid.merge()
            hybrid.detach()
    assert min(seen.values()) > 3
