from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from autopeft.errors import MethodError
from autopeft.method import Stored
from autopeft.nn import mixture, only_prompt, prompt_similarity, stored_prompt


def stored(table: torch.Tensor, name: str = "source") -> Stored:
    return Stored(name, "prompt_tuning", "prompt_tuning", {"table": table})


@pytest.mark.parametrize("kind", ["mean", "pairs"])
def test_similarity_is_symmetric_and_within_one(kind: str) -> None:
    one, other = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    there, back = prompt_similarity(one, other, kind), prompt_similarity(other, one, kind)
    torch.testing.assert_close(there, back)
    assert -1 <= there <= 1
    assert prompt_similarity(3 * one, other, kind).item() == pytest.approx(there.item())


def test_a_prompt_is_as_similar_to_itself_as_can_be() -> None:
    one = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert prompt_similarity(one, one).item() == pytest.approx(1.0)


def test_pairs_are_the_mean_of_all_cosines() -> None:
    one, other = torch.randn(3, 7), torch.randn(4, 7)
    each = [cosine_similarity(a, b, dim=0) for a in one for b in other]
    torch.testing.assert_close(prompt_similarity(one, other, "pairs"), torch.stack(each).mean())


def test_a_mixture_weighs_the_most_similar_in_proportion() -> None:
    similarities = torch.tensor([0.1, 0.6, -0.4, 0.2])
    assert mixture(similarities, 1).tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(mixture(similarities, 2), torch.tensor([0, 0.75, 0, 0.25]))
    torch.testing.assert_close(mixture(similarities, 9), similarities.clamp(min=0) / 0.9)
    assert mixture(-similarities.abs(), 2).sort().values.tolist() == [0, 0, 0.5, 0.5]


def test_a_prompt_of_another_shape_is_refused_with_the_way_out() -> None:
    with pytest.raises(MethodError, match=r"\(4, 8\).*\(4, 7\).*`length`"):
        stored_prompt(stored(torch.zeros(4, 7)), 4, 8)
    with pytest.raises(MethodError, match="has none"):
        stored_prompt(
            Stored("a", "spot", "spot", {"one": torch.zeros(4, 8), "other": torch.zeros(4, 8)}), 4, 8
        )
    with pytest.raises(MethodError, match="spot"):
        only_prompt([stored(torch.zeros(4, 8)), stored(torch.zeros(4, 8), "other")], 4, 8)


@pytest.mark.parametrize(
    ("method", "name"),
    [("prompt_tuning", "table"), ("spot", "table"), ("tpt", "table"), ("p_tuning", "embedding")],
)
def test_rows_at_the_embeddings_are_taken_whichever_method_left_them(method: str, name: str) -> None:
    rows = torch.randn(4, 8)
    assert torch.equal(stored_prompt(Stored("a", "x", method, {name: rows}), 4, 8), rows)


@pytest.mark.parametrize("method", ["lpt", "dept", "xprompt", "lora"])
def test_what_another_method_left_is_no_prompt_though_it_has_the_name_and_the_shape(method: str) -> None:
    tensors = {"table": torch.zeros(4, 8)}
    with pytest.raises(MethodError, match=rf"'x' \({method}\).*p_tuning, prompt_tuning, spot, tpt.*'from:'"):
        stored_prompt(Stored("a", "x", method, tensors), 4, 8)
    assert torch.equal(stored_prompt(Stored("a", "x", method, tensors, own=True), 4, 8), tensors["table"])
