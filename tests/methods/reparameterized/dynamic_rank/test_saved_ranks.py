"""What a saved file may ask for, of all methods whose ranks training settles."""

from __future__ import annotations

import pytest
from support.toy import build, toy_spec


@pytest.mark.parametrize("name", ["adalora", "autolora", "dylora", "sora"])
def test_a_file_cannot_ask_for_more_than_the_config_allows(name: str) -> None:
    module, _ = build(name, toy_spec(hidden=8, kv=8), rank=4, sites=("q",))
    module.deploy()  # as a loader does: saved is the deployed form
    before = sum(p.numel() for p in module.parameters())
    vast = {f"at.{key}.{part}": (10**6, 8) for key in module.at for part in "AE"}
    module.resize(vast)
    assert sum(p.numel() for p in module.parameters()) <= before
    small = {f"at.{key}.{part}": (2, 8) for key in module.at for part in "AE"}
    module.resize(small)
    assert 0 < sum(p.numel() for p in module.parameters()) <= before / 2
