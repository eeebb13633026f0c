"""Test-time ensembles: one hybrid as several models, whose output distributions are averaged.

The mean of distributions is no property of a site: it takes a forward of the whole model for each member. So
modules only say how many members they stand for (see `autopeft.method.Ensembles`), and whoever asks for
predictions runs the members here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autopeft.hybrid.hybrid import ROOT
from autopeft.method import Ensembles

__all__ = ["ensembled"]


def ensembled(model: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """What `run`, a forward of `model` in eval mode, yields on the mean over the members of its hybrid.

    Logits (rows, classes) become logs of the mean of their softmax, of the same shape in fp32, and the one
    column of a regression its mean. Where several entries are ensembles, member i of all of them acts
    together, as many times as the largest says. Without any, it is what `run` yields.

    Example:
        >>> logits = ensembled(model, lambda: model(**batch).logits)           # doctest: +SKIP
    """
    root = getattr(model, ROOT, None)
    modules = [] if root is None else [m for m in root.modules() if isinstance(m, Ensembles) and m.members]
    if not modules:
        return run()
    outputs = []
    try:
        for member in range(max(m.members for m in modules)):
            for module in modules:
                module.choose(member)
            outputs.append(run().float())
    finally:
        for module in modules:
            module.choose(None)
    stacked = torch.stack(outputs)
    if stacked.shape[-1] == 1:
        return stacked.mean(dim=0)
    return torch.logsumexp(stacked.log_softmax(dim=-1), dim=0) - math.log(len(outputs))
