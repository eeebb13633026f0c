from __future__ import annotations

import json

import pytest

from autopeft.training.result import History, TrainResult


@pytest.mark.parametrize(("steps", "points"), [(1, 1), (7, 7), (100, 100), (101, 100), (1234, 100)])
def test_the_points_are_few_and_their_means_are_those_of_all_steps(steps: int, points: int) -> None:
    losses = [float(i) for i in range(steps)]
    found = History.of(TrainResult(losses=losses), [(1, "training")])
    assert len(found.losses) == points
    assert found.losses[-1][0] == steps
    start, total = 0, 0.0
    for end, mean in found.losses:
        assert mean == pytest.approx(sum(losses[start:end]) / (end - start))
        total += mean * (end - start)
        start = end
    assert total == pytest.approx(sum(losses))


def test_without_a_step_there_is_no_loss() -> None:
    table = json.loads(json.dumps(History.of(TrainResult(), [(1, "conclusion")]).to_dict(), allow_nan=False))
    assert table == {
        "first_loss": None,
        "last_loss": None,
        "losses": [],
        "scores": [],
        "phases": [[1, "conclusion"]],
    }


def test_it_is_kept_as_json() -> None:
    losses = [2.0] * 10 + [1.0] * 80 + [0.5] * 10
    result = TrainResult(losses=losses, scores=[(50, 0.5), (100, 0.75)])
    table = json.loads(json.dumps(History.of(result, [(1, "search of a"), (51, "retrain of a")]).to_dict()))
    assert (table["first_loss"], table["last_loss"]) == (2.0, 0.5)
    assert table["scores"] == [[50, 0.5], [100, 0.75]]
    assert table["phases"] == [[1, "search of a"], [51, "retrain of a"]]
    assert table["losses"][0] == [1, 2.0]
