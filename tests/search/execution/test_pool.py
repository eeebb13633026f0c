from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import AutoPEFTError
from autopeft.search.execution.pool import Capacity, Pool


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=5),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.4, 0.5, 0.7, 1.0, 2.0]),
)
def test_the_capacity_fits_its_machines(machines: list[tuple[int, int]], cpus: int, gpus: float) -> None:
    """As many as each machine holds, counted one by one: a job's share of a GPU lies on one GPU."""

    def holds(have: tuple[int, int]) -> int:
        left, shares = have[0], [1.0] * have[1]
        jobs = 0
        while left >= cpus:
            free = [i for i, share in enumerate(shares) if share >= min(gpus, 1.0) - 1e-6]
            wanted = int(gpus) if gpus >= 1 else min(1, int(gpus > 0))
            if len(free) < wanted:
                break
            for i in free[:wanted]:
                shares[i] -= min(gpus, 1.0)
            left, jobs = left - cpus, jobs + 1
        return jobs

    nodes = [{"CPU": float(c), "GPU": float(g)} for c, g in machines]
    expected = sum(map(holds, machines))
    if expected:
        assert Capacity(Pool(None, cpus, gpus), lambda: nodes, resume="r").size == expected
    else:
        with pytest.raises(AutoPEFTError, match="lower --cpus-per-trial or --gpus-per-trial"):
            Capacity(Pool(None, cpus, gpus), lambda: nodes, resume="r")
