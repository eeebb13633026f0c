"""Predictions that take more than one forward: the mean over an ensemble, or over a posterior.

The mean of distributions is no property of a site: it takes the logits of the whole model. So modules only
say how many members they stand for, or how uncertain the logits are through them (see
`autopeft.method.Ensembles` and `Posterior`), and whoever asks for predictions gets them here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules import active_modules
from autopeft.method import Ensembles, Posterior
from autopeft.nn import generator_of

__all__ = ["predictive", "several_models", "stands_for_several"]

_JITTER = 1e-6
_AT_ONCE = 1 << 24  # sampled logits


Mean = Callable[[Tensor, int], Tensor]


def several_models(module: nn.Module) -> bool:
    """Whether predictions through a module average over an ensemble or a posterior."""
    return bool(
        (isinstance(module, Ensembles) and module.members)
        or (isinstance(module, Posterior) and module.samples)
    )


def stands_for_several(model: nn.Module) -> bool:
    """Whether predictions of a model average over an ensemble or a posterior (see `predictive`)."""
    return any(map(several_models, active_modules(model)))


def predictive(model: nn.Module, run: Callable[[], Tensor], *, mean: Mean | None = None) -> Tensor:
    """The mean prediction of `run`, a forward of `model` in eval mode, over the members of its hybrid.

    Logits (rows, classes) become logs of the mean of their softmax, of the same shape in fp32: over the
    members of ensembles, and over the normal distribution of the logits under posteriors. Where several
    entries are ensembles, member i of all of them acts together, as many times as the largest says; the
    covariances that posteriors give add. The one column of a regression becomes its mean. Without any of
    these it is what `run` yields. Samples are the same in every call, and for every row.

    `mean` says what is the logits' mean over a dimension where that is something else than the log of the
    mean softmax (independent labels, an order of classes).

    Posteriors take gradients, also where none are kept around the call; parameters gather none.

    Example:
        >>> logits = predictive(model, lambda: model(**batch).logits)           # doctest: +SKIP
    """
    modules = active_modules(model)
    posteriors = [m for m in modules if isinstance(m, Posterior) and m.samples]
    if posteriors:
        run = partial(_mean_over_posteriors, posteriors, run, mean)
    ensembles = [m for m in modules if isinstance(m, Ensembles) and m.members]
    return _mean_over_members(ensembles, run, mean) if ensembles else run()


def _mean_over_members(
    ensembles: Sequence[Ensembles], run: Callable[[], Tensor], mean: Mean | None
) -> Tensor:
    outputs = []
    try:
        for member in range(max(m.members for m in ensembles)):
            for module in ensembles:
                module.choose(member)
            outputs.append(run().float())
    finally:
        for module in ensembles:
            module.choose(None)
    stacked = torch.stack(outputs)
    if mean is not None:
        return mean(stacked, 0)
    return stacked.mean(dim=0) if stacked.shape[-1] == 1 else _log_mean(stacked, dim=0)


def _mean_over_posteriors(
    posteriors: Sequence[Posterior], run: Callable[[], Tensor], mean: Mean | None
) -> Tensor:
    with ExitStack() as within:
        within.enter_context(torch.inference_mode(False))
        within.enter_context(torch.enable_grad())
        for posterior in posteriors:
            within.enter_context(posterior.recording())
        logits = run().float()
        if logits.shape[-1] == 1:
            return logits.detach()
        covariances = [posterior.covariance(logits).detach() for posterior in posteriors]
    covariance = torch.stack(covariances).sum(dim=0)
    return _sampled(logits.detach(), covariance, max(p.samples for p in posteriors), mean or _log_mean)


@torch.no_grad()
def _sampled(logits: Tensor, covariance: Tensor, samples: int, mean: Mean) -> Tensor:
    """The mean (by default log E softmax(f)) for f ~ N(logits, covariance), jointly over the classes."""
    classes = logits.shape[-1]
    # Small matrices of any scale: in fp64, which not every device has.
    exact = covariance.cpu().double()
    scale = exact.diagonal(dim1=1, dim2=2).amax(dim=1).clamp(min=1.0)
    jitter = _JITTER * scale[:, None, None] * torch.eye(classes, dtype=torch.float64)
    root = torch.linalg.cholesky(exact + jitter).to(logits)
    draws = torch.randn(samples, classes, generator=generator_of(0, "predictive")).to(logits)
    part = max(1, _AT_ONCE // (samples * classes))
    pairs = zip(logits.split(part), root.split(part), strict=True)
    return torch.cat([mean(f[:, None] + draws @ r.mT, 1) for f, r in pairs])


def _log_mean(logits: Tensor, dim: int) -> Tensor:
    """Log of the mean over a dimension of the softmax over the last one."""
    return torch.logsumexp(logits.log_softmax(dim=-1), dim=dim) - math.log(logits.shape[dim])
