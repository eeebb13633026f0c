from __future__ import annotations

from typing import Any

import torch
from support.steps import NO_STEP
from torch import Tensor, nn

from autopeft.hybrid.events import fire, loss_terms


class _Listener(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[object] = []

    def before_step(self, step: int, total: int) -> None:
        self.heard.append(("before_step", step, total))

    def finish(self) -> None:
        self.heard.append("finish")


class _Term(nn.Module):
    def __init__(self, term: Tensor | None) -> None:
        super().__init__()
        self.term = term

    def loss_terms(self, step: Any) -> Tensor | None:
        return self.term


def test_events_reach_the_modules_that_have_them() -> None:
    listener = _Listener()
    modules = [nn.Linear(1, 1), listener]
    fire("before_step", modules, 3, 9)
    fire("after_step", modules, 3, 9)
    fire("finish", modules)
    assert listener.heard == [("before_step", 3, 9), "finish"]


def test_terms_add_up_and_none_is_no_term() -> None:
    assert loss_terms([nn.Linear(1, 1), _Term(None)], NO_STEP) is None
    total = loss_terms([_Term(torch.tensor(2.0)), _Term(None), _Term(torch.tensor(0.5))], NO_STEP)
    assert total is not None
    assert float(total) == 2.5
