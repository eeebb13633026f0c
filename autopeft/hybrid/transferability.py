"""What tells how well something transfers, before it is trained on.

How alike two prompts act in a frozen model is told by the overlap of the neurons that they activate: Su et
al. 2022, arXiv:2111.06719 §6, find it the best predictor of how well a prompt transfers. How well features
suit labels is told by the evidence of a linear model of them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from autopeft.backbones import Place, base_model_of, layout_of
from autopeft.errors import UsageError
from autopeft.hybrid.hybrid import attach
from autopeft.recipe import Recipe

__all__ = ["activated_neurons", "log_evidence", "neuron_overlap"]

_ROUNDS, _ENOUGH, _LEAST = 100, 1e-6, 1e-12
_FIRST = ("bos_token_id", "decoder_start_token_id", "eos_token_id")


def log_evidence(features: Tensor, labels: Tensor) -> float:
    """The logarithm of the maximum evidence of labels, given features, for each row: higher is better (LogME,
    You et al. 2021, arXiv:2102.11005).

    A label is w·f + ε with w ~ N(0, I/α) and ε ~ N(0, 1/β), so that the labels y of all rows F (n, d) are
    N(0, I/β + F·Fᵀ/α). α and β are those with the largest density, by the fixed point of MacKay 1992: with
    σ the eigenvalues of F·Fᵀ, m the posterior mean of w and γ = Σ β·σ/(α + β·σ), α = γ/‖m‖² and
    β = (n - γ)/‖F·m - y‖². A class counts as 0 and 1, and the mean over classes is taken, as in the paper.
    Where d > n, the authors' code of the fixed point leaves d - n terms log α out of log |A|, so that its
    values are no evidence; those here are the density itself.

    Args:
        features: (n, d).
        labels: (n,) whole numbers for classes; else numbers, (n,) or (n, k).
    """
    f, y = features.double(), labels.double()
    if not labels.is_floating_point() and labels.ndim == 1:
        y = F.one_hot(labels.long(), int(labels.max()) + 1).double()
        y = y[:, y.any(0)]
    y = y.reshape(len(y), -1)
    basis, singular, _ = torch.linalg.svd(f, full_matrices=False)
    sigma, n = singular.square()[:, None], len(f)
    inside = (basis.T @ y).square()  # (min(n, d), k)
    outside = (y.square().sum(0) - inside.sum(0)).clamp_min(0.0)
    alpha, beta = torch.ones(2, y.shape[1], dtype=f.dtype)
    for _ in range(_ROUNDS):
        before = alpha / beta
        gamma = (sigma / (sigma + before)).sum(0)
        weights = (sigma * inside / (sigma + before).square()).sum(0)
        missed = (inside * (before / (sigma + before)).square()).sum(0) + outside
        alpha, beta = gamma / weights.clamp_min(_LEAST), (n - gamma) / missed.clamp_min(_LEAST)
        if bool(((alpha / beta - before).abs() <= _ENOUGH * before).all()):
            break
    variances = 1 / beta + sigma / alpha
    quadratic = (inside / variances).sum(0) + beta * outside
    determinant = variances.log().sum(0) - (n - len(sigma)) * beta.log()
    evidence = -0.5 * (quadratic + determinant + n * math.log(2 * math.pi))
    return float((evidence / n).mean())


def neuron_overlap(model: PreTrainedModel, one: Tensor, other: Tensor, *, token: int | None = None) -> float:
    """The cosine of the neurons that two prompts activate, from 0 to 1; symmetric, and 1 of a prompt with
    itself.

    Args:
        model: the frozen model, with nothing attached.
        one, other: the prompts, (length, d) each.
        token: see `activated_neurons`.
    """
    found = [activated_neurons(model, prompt, token=token).flatten().double() for prompt in (one, other)]
    return min(1.0, float(F.cosine_similarity(found[0], found[1], dim=0)))


@torch.no_grad()
def activated_neurons(model: PreTrainedModel, prompt: Tensor, *, token: int | None = None) -> Tensor:
    """The FFN neurons that [prompt; <s>] activates: those whose activation's input is above 0.

    They are those of the decoder where there is one, else of the encoder. They are read at the first
    position, in a decoder at the last one, which is the only one that has read the whole prompt.

    Args:
        model: the frozen model, with nothing attached.
        prompt: (length, d).
        token: the id of <s>; by default the first of the ids of beginning and end that the configuration has.

    Returns:
        (layers, neurons), bool.

    Raises:
        UsageError: the prompt does not fit the model, something is attached already, no id is known, or it is
            not known where the FFNs are.
    """
    # What feeds the activations of the last stack's FFNs: the gate where there is one.
    places = layout_of(base_model_of(model)).stacks[-1].places
    feeding = [[place for place in places if place.site.name == name] for name in ("gate_proj", "up")]
    neurons = feeding[0] or feeding[1]
    if not neurons:
        raise UsageError(f"It is not known where the FFNs of {type(model).__name__} are.")
    ids = [token, *(getattr(model.config, name, None) for name in _FIRST)]
    first = next((int(i) for i in ids if i is not None), None)
    if first is None:
        raise UsageError(f"The configuration of {type(model).__name__} names no first token; give token=ID.")
    item = {"prompt_tuning": {"length": len(prompt)}}
    found: list[Tensor] = []
    base, modes = base_model_of(model), [(module, module.training) for module in model.modules()]
    with attach(model, Recipe.from_dict({"name": "probe", "model": [item]}), seed=0) as hybrid:
        table = hybrid.root.get_parameter("prompt_tuning.table")
        if table.shape != prompt.shape:
            raise UsageError(f"A prompt of shape {tuple(prompt.shape)} is not of width {table.shape[1]}.")
        table.copy_(prompt)
        handles = [
            base.get_submodule(place.exit).register_forward_hook(partial(_read, place, found))
            for place in neurons
        ]
        try:
            base.eval()
            text = {"input_ids": torch.tensor([[first]], device=base.device)}
            base(**text, **({"decoder_input_ids": text["input_ids"]} if hybrid.spec.encoder_decoder else {}))
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes:
                module.training = mode
    return torch.stack(found)


def _read(place: Place, found: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    rows = output if output.ndim == 3 else output[None]
    neurons = rows if place.out_slice is None else place.out_slice.of(rows)
    position = -1 if place.site.stack == "decoder" else 0
    found.append(neurons[0, position] > 0)
