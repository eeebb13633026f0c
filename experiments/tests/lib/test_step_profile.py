"""Whose time a profile of steps says it was."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lib import step_profile


def test_profiles_credit_the_callers() -> None:
    ours = str(Path(importlib.import_module("autopeft.hybrid").__file__ or ""))
    bert = str(Path(importlib.import_module("transformers").__file__ or ""))
    a, b = (ours, 5, "forward"), (bert, 9, "forward")
    table = {
        a: (4, 4, 0.2, 1.0, {}),
        b: (2, 2, 0.1, 0.5, {}),
        ("~", 0, "<built-in method torch._C._nn.linear>"): (
            6,
            6,
            0.5,
            0.5,
            {a: (4, 4, 0.4, 0.4), b: (2, 2, 0.1, 0.1)},
        ),
        ("~", 0, "<built-in method builtins.len>"): (4, 4, 0.1, 0.1, {a: (4, 4, 0.1, 0.1)}),
    }
    rows, called = step_profile.python_rows(SimpleNamespace(stats=table), 1.0, 2)
    assert [(r.group, round(r.share, 3), r.calls) for r in rows] == [
        ("autopeft", 0.3, 2),
        ("transformers", 0.1, 1),
    ]
    assert called == pytest.approx({"autopeft": 0.4, "transformers": 0.1})
    assert step_profile.group_of(torch.nn.__file__) == "torch"
    assert step_profile.group_of(json.__file__) == "other"
