from __future__ import annotations

import pytest

from autopeft.errors import UsageError
from autopeft.search.planning.option_checks import RANKS, check_rank_for
from autopeft.tasks.kinds import get_kind


@pytest.mark.parametrize(
    ("kind", "known", "why"),
    [
        ("classification", RANKS, None),
        ("multi_label", RANKS, None),
        ("causal_lm", ("loss", "score"), "its outputs are not logits"),
        ("question_answering", ("loss", "score"), "its outputs are not logits"),
        ("regression", ("score",), "it has no loss to rank by"),
    ],
)
def test_what_recipes_for_a_kind_of_task_are_ranked_by(
    kind: str, known: tuple[str, ...], why: str | None
) -> None:
    for name in (None, *RANKS):
        if name is None or name in known:
            check_rank_for(get_kind(kind), name)
            continue
        allowed = " or ".join(known)
        with pytest.raises(UsageError) as caught:
            check_rank_for(get_kind(kind), name)
        for said in (kind, allowed, f"rank_by={name!r}", str(why)):
            assert said in str(caught.value)
