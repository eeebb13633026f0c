"""Where the head starts: at random, or fitted to the frozen features (a linear probe).

From random weights a head learns for most of a short training, and the seed that drew it decides more than
the recipe does. A probe fits the head's last linear map to what the frozen backbone says of the training
rows, minimising the task's own loss L plus λ/2·‖W‖² with W in units of standardised features. λ is chosen by
cross-validation, as the largest that is within one standard error of the best (Breiman et al. 1984), so that
few rows give a head near zero and not one that knows them by heart. Copies of a row are held out together: a
head that knows one knows the others. Where held-out rows do not show that the probe knows enough, the head
stays as it was drawn, but that of a regression answers with numbers of the labels' size: no short training
leads from 0 to 200,000.

A probe on features that vary little has long weights, and with long weights a small change of the backbone is
a large one of the logits: with few rows of many classes that lost up to twelve points to a random head
(`experiments/head_start`). So where more than the head trains, weights are shortened to a few times the
length of drawn ones; their directions, and the logits of the mean row, stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.assets.heads import head_names, initial_spread, reset_head
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooling_of, trained_entries
from autopeft.tasks.encode import EncodedTask
from autopeft.tasks.kinds import IGNORED, Loss
from autopeft.training.contexts import evaluation_mode
from autopeft.training.forward import shortest_forward
from autopeft.training.measurements import KeptMeasurements
from autopeft.training.memory import with_fewer_rows
from autopeft.training.plan import TrainingPlan

__all__ = [
    "HeadFeatures",
    "HeadFit",
    "Probe",
    "begin_head",
    "fit_head",
    "fitted_head",
    "head_features",
    "last_linear",
    "start_head",
]

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""λ, from strong to weak, with the mean loss over rows."""

_FOLDS, _SEED, _ITERATIONS = 5, 0, 40
_SURE, _SAVED = 0.975, 0.1
_SPREAD = 0.02  # of drawn weights, where the configuration draws zeros
_LONGEST = 3.0  # times the length of drawn weights, and the probe's unit: measured with classes alone
_MOST_ROWS = 8_000  # a few hundred coefficients are not told better by more
_FORMAT = 5
_LEAST = 4  # rows that are no copies of each other


@dataclass(frozen=True)
class Probe:
    """A fitted last layer.

    Attributes:
        weight: (outputs, features).
        bias: (outputs,), or `None` for a layer without one.
        strength: the λ that was chosen.
        mean: (outputs,), logits of the mean row.
        unit: root of the loss of the best constant answer.
        losses: mean held-out loss of each λ that was tried, from strong to weak.
    """

    weight: Tensor
    bias: Tensor | None
    strength: float
    mean: Tensor
    unit: float = 1.0
    losses: tuple[float, ...] = ()

    def shortened(self, longest: float) -> Probe:
        """The same directions and the same logits of the mean row, with rows of weights that are at most
        `longest` units long on average."""
        factor = min(1.0, longest * self.unit / max(1e-12, float(self.weight.norm(dim=1).mean())))
        bias = None if self.bias is None else factor * self.bias + (1.0 - factor) * self.mean
        return replace(self, weight=factor * self.weight, bias=bias)


class HeadFit(NamedTuple):
    """What a linear map makes of a head's features.

    Attributes:
        probe: the map; `None` where held-out rows do not show that it knows enough.
        loss: least mean held-out loss of all that was tried, the best constant answer among it.
        of_rows: whether each row has one place in the features.
        constant: (outputs,), the best constant answer, where the loss is in the labels' unit; else `None`.
        unit: root of its loss.
    """

    probe: Probe | None
    loss: float
    of_rows: bool = True
    constant: Tensor | None = None
    unit: float = 1.0


def begin_head(
    model: PreTrainedModel, recipe: Recipe, data: EncodedTask, plan: TrainingPlan, *, full: bool = False
) -> None:
    """Start the head of a training, in place: from the plan's seed, or from a probe of the backbone.

    Args:
        full: every weight trains in place of what the recipe attaches.
    """
    if data.task.task_kind.head.new_head:
        reset_head(model, plan.seed)
        if plan.head_start == "probe":
            alone = not full and not trained_entries(recipe)
            start_head(model, data, plan, alone=alone, pooling=pooling_of(recipe))


def start_head(
    model: PreTrainedModel,
    data: EncodedTask,
    plan: TrainingPlan,
    *,
    alone: bool = False,
    pooling: Recipe | None = None,
) -> Probe | None:
    """Fit the head's last linear map to the features of the frozen backbone, in place.

    The backbone is bare and in eval mode. Layers of the head below the last keep the values that they have.
    It is fitted once for a backbone, a head's lower layers, rows, labels and loss, and kept on disk. The
    test and select rows are not looked at, nor are more of the training rows than have 8,000 labels together.
    Without effect on kinds whose head the backbone brings or whose labels are of whole rows of tokens
    (`Head.probed`), on heads that do not end in a linear map, and where there are fewer than four
    different rows.

    Args:
        alone: nothing but the head will train, so that the weights keep their length.
        pooling: what settles what the head reads (see `autopeft.recipe.pooling`); `None`: the model itself.

    Returns:
        What the layer was set to, or `None` where the head stays as it was drawn: it is of another form, or
        held-out rows do not show that the fit knows enough (see `fit_head`). Where labels are numbers, what
        was drawn is then in their unit, around their mean. Of several heads (`Head.each`), the first's.
    """
    found = []
    for own, task in data.task.task_kind.head.each(model, data):
        with own as with_one_head:
            found.append(_start(with_one_head, task, plan, alone=alone, pooling=pooling))
    return found[0]


def _start(
    model: PreTrainedModel, data: EncodedTask, plan: TrainingPlan, *, alone: bool, pooling: Recipe | None
) -> Probe | None:
    """Fit the last linear map of one head, in place."""
    fit = fitted_head(model, data, plan, pooling)
    if fit is None:
        return None
    last = cast(nn.Linear, model.get_submodule(str(last_linear(model))))
    if fit.probe is None:
        if fit.constant is not None and last.bias is not None:
            with torch.no_grad():
                last.weight.mul_(fit.unit)
                last.bias.copy_(fit.constant)
        return None
    found = fit.probe
    if not alone:
        std = initial_spread(model) or _SPREAD
        found = found.shortened(_LONGEST * std * float(last.in_features) ** 0.5)
    with torch.no_grad():
        last.weight.copy_(found.weight)
        if found.bias is not None:
            last.bias.copy_(found.bias)
    return found


def fitted_head(
    model: PreTrainedModel, data: EncodedTask, plan: TrainingPlan, pooling: Recipe | None = None
) -> HeadFit | None:
    """What the head's last linear map can make of the frozen backbone; the model is afterwards as it was.

    From disk where it was fitted before. `None` where there is nothing to fit (see `start_head`).
    """
    labels, kind = data.train.labels, data.task.task_kind
    if not kind.head.new_head or not kind.head.probed or labels is None or len(data.train) < 4:
        return None
    model.to(plan.torch_device())  # type: ignore[arg-type]
    name = last_linear(model)
    if name is None:
        return None
    last = cast(nn.Linear, model.get_submodule(name))
    drawn = {key: value.detach().clone() for key, value in last.state_dict().items()}
    with torch.no_grad():
        for parameter in last.parameters():  # the fit does not depend on them, nor does what it is kept under
            parameter.zero_()
    try:
        return _kept_fit(model, name, data, plan, pooling)
    finally:
        with torch.no_grad():
            last.load_state_dict(drawn)


def _kept_fit(
    model: PreTrainedModel, name: str, data: EncodedTask, plan: TrainingPlan, pooling: Recipe | None
) -> HeadFit | None:
    """The fit of a model whose last linear map is zero, from disk where it was made before."""
    kept = KeptMeasurements(model, data, plan, seeded=False)
    settings: dict[str, Any] = {"format": _FORMAT}
    if pooling is not None and pooling.entries():
        settings |= {"pooling": pooling.structure_hash()}
    known = kept.get("head_start", settings)
    if known is None:
        few = _few(data)
        copies = torch.from_numpy(few.train.copies())
        features = head_features(model, name, few, plan, pooling) if len(copies.unique()) >= _LEAST else None
        if features is None:
            return None
        last = cast(nn.Linear, model.get_submodule(name))
        fit = fit_head(
            features.inputs,
            features.labels,
            data.task.loss(),
            outputs=last.out_features,
            bias=last.bias is not None,
            copies=copies if features.rows is None else copies[features.rows],
            of_tokens=features.rows is not None,
        )
        known = _to_keep(fit)
        kept.put("head_start", settings, known)
    return _from_kept(known)


def _to_keep(fit: HeadFit) -> dict[str, Tensor]:
    known = {"loss": torch.tensor(fit.loss), "of_rows": torch.tensor(fit.of_rows)}
    if fit.constant is not None:
        known |= {"constant": fit.constant, "constant_unit": torch.tensor(fit.unit)}
    if (probe := fit.probe) is not None:
        known |= {"weight": probe.weight, "mean": probe.mean, "unit": torch.tensor(probe.unit)}
        known |= {"strength": torch.tensor(probe.strength)}
        known |= {} if probe.bias is None else {"bias": probe.bias}
    return known


def _from_kept(known: Mapping[str, Tensor]) -> HeadFit:
    loss, of_rows, constant = float(known["loss"]), bool(known["of_rows"]), known.get("constant")
    fit = HeadFit(None, loss, of_rows, constant, float(known.get("constant_unit", 1.0)))
    if "weight" not in known:
        return fit
    strength, unit = (float(known[name]) for name in ("strength", "unit"))
    return fit._replace(probe=Probe(known["weight"], known.get("bias"), strength, known["mean"], unit))


def last_linear(model: PreTrainedModel) -> str | None:
    """Name of the linear map that the head ends in: the last in the order of the head's modules."""
    found = [
        f"{head}.{name}".rstrip(".")
        for head in head_names(model)
        for name, module in model.get_submodule(head).named_modules()
        if isinstance(module, nn.Linear)
    ]
    return found[-1] if found else None


def _few(data: EncodedTask) -> EncodedTask:
    """The task with as many of its training rows, drawn, as have 8,000 labels together."""
    train = data.train
    drawn = np.random.default_rng(_SEED).permutation(len(train))
    rows = drawn[: 1 + int(np.searchsorted(np.cumsum(train.label_counts[drawn]), _MOST_ROWS))]
    if len(rows) >= len(train):
        return data
    return replace(data, splits={**data.splits, "train": train.take(np.sort(rows))})


class HeadFeatures(NamedTuple):
    """What a head's last layer reads, and what it shall answer.

    Attributes:
        inputs: (labels, features) in fp32.
        labels: as the loss takes them, (labels, …).
        rows: the row that each is of, (labels,), where rows have several; else `None`.
    """

    inputs: Tensor
    labels: Tensor
    rows: Tensor | None


def head_features(
    model: PreTrainedModel, name: str, data: EncodedTask, plan: TrainingPlan, pooling: Recipe | None = None
) -> HeadFeatures | None:
    """What the layer `name` reads of each training row, or of each of its tokens that have a label.

    With the identity in the layer's place the model's logits are just that, whatever position of the row the
    model takes them from. `None` where they are not.

    Args:
        pooling: a recipe to attach, such as what settles what the head reads; `None` for nothing.

    Raises:
        UsageError: the recipe does not fit the model.
    """
    device, width = plan.torch_device(), int(cast(nn.Linear, model.get_submodule(name)).in_features)
    with (
        _replaced(model, name, nn.Identity()),
        attach(model, pooling or Recipe(name="bare"), seed=plan.seed) as hybrid,
    ):
        forward = shortest_forward(hybrid, data, plan, dropout=False)

        def read_all(rows: int) -> list[tuple[Tensor, Tensor]]:
            return [
                (forward(batch).float().cpu(), batch["labels"].cpu())
                for batch in forward.batches(data.train, rows, shuffle=False, device=device)
            ]

        with evaluation_mode(model):
            parts = with_fewer_rows(read_all, plan.eval_rows, model, doing="The probe of the head")
    if any(read.shape[-1] != width or read.ndim not in (2, 3) for read, _ in parts):
        return None
    order = torch.from_numpy(data.train.order())
    if parts[0][0].ndim == 2:
        read, labels = (torch.cat(both) for both in zip(*parts, strict=True))
        back = torch.argsort(order)
        return HeadFeatures(read[back], labels[back], None)
    if any(labels.shape != read.shape[:2] for read, labels in parts):
        return None
    there = [labels != IGNORED for _, labels in parts]
    counts = torch.cat([mask.sum(dim=1) for mask in there])
    return HeadFeatures(
        torch.cat([read[mask] for (read, _), mask in zip(parts, there, strict=True)]),
        torch.cat([labels[mask] for (_, labels), mask in zip(parts, there, strict=True)]),
        order.repeat_interleave(counts),
    )


@contextmanager
def _replaced(model: nn.Module, name: str, other: nn.Module) -> Iterator[None]:
    own = model.get_submodule(name)
    model.set_submodule(name, other)
    try:
        yield
    finally:
        model.set_submodule(name, own)


def fit_head(
    features: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    outputs: int,
    bias: bool = True,
    copies: Tensor | None = None,
    of_tokens: bool = False,
) -> HeadFit:
    """Minimise loss + λ/2·‖W‖² over a linear map, with λ by cross-validation.

    Args:
        features: (rows, features) in fp32, at least four rows that are no copies.
        labels: (rows, …), as `loss` takes them.
        loss: of logits (rows, outputs); its mean over the rows counts.
        copies: (rows,), a number that is equal for those that are held out together: copies of a row, and
            tokens of one. `None` where each stands for itself.
        of_tokens: the loss takes each as a row of one token.

    Returns:
        The fit. Its map has to save a tenth of the loss of the best constant answer on held-out rows, and a
        t-test over the folds (one-sided, 2.5 %) has to find that it saves any. That tenth is a conjecture.
        No map is made of features that are not finite.
    """
    if not bool(torch.isfinite(features).all()):
        return HeadFit(None, math.inf, not of_tokens)  # the training that follows says what is wrong
    centre, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    if not bias:
        centre = torch.zeros_like(centre)
    inputs = (features - centre) / spread
    copies = torch.arange(len(labels)) if copies is None else copies
    folds = _folds_of(copies) if of_tokens else _folds(labels, copies)
    # Only the last one, on all rows, is used; the others say what each strength is worth.
    masks = [*(folds != fold for fold in folds.unique()), torch.ones_like(folds, dtype=torch.bool)]
    fits = _Fits(inputs, labels, loss, masks, outputs, bias=bias, of_tokens=of_tokens)
    fits.begin_constant()
    constant = fits.held_out()
    drawn = fits.solution()[1] if loss.in_units else None
    fit = HeadFit(None, 0.0, not of_tokens, drawn, fits.unit)
    # The map for each λ, and its losses on held-out rows; each starts where the stronger one ended.
    weights, held_out = list[tuple[Tensor, Tensor | None]](), list[Tensor]()
    for strength in STRENGTHS:
        fits.minimise(strength)
        held_out.append(fits.held_out())
        weights.append(fits.solution())
        if len(held_out) > 2 and bool(held_out[-1].mean() > 1.2 * min(h.mean() for h in held_out)):
            break
    # The strongest λ whose mean held-out loss is within one standard error of the best.
    means = torch.stack([losses.mean() for losses in held_out])
    best = int(means.argmin())
    error = float(held_out[best].std() / len(held_out[best]) ** 0.5)
    chosen = int((means <= means[best] + error).nonzero()[0])
    saved = constant - held_out[chosen]
    chance = float(stdtrit(len(saved) - 1, _SURE)) * float(saved.std()) / len(saved) ** 0.5
    losses = tuple(float(h.mean()) for h in held_out)
    fit = fit._replace(loss=min(float(constant.mean()), *losses))
    if not float(saved.mean()) > max(chance, _SAVED * float(constant.mean())):
        return fit
    weight, offset = weights[chosen]
    offset = None if offset is None else loss.floored(offset, labels)
    weight = weight / spread
    mean = torch.zeros(outputs) if offset is None else offset
    offset = None if offset is None else offset - weight @ centre
    probe = Probe(weight, offset, STRENGTHS[chosen], mean, fits.unit, losses)
    return fit._replace(probe=probe)


def _folds(labels: Tensor, copies: Tensor) -> Tensor:
    """The fold of each row: shuffled, and where labels are classes each class spread over all folds; copies
    have the fold of the first of them in that order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SEED))
    if labels.ndim == 1:
        order = order[torch.argsort(labels[order], stable=True)]
    _, group = copies.unique(return_inverse=True)
    count = int(group.max()) + 1
    places = torch.arange(len(order))
    first = torch.full((count,), len(order)).scatter_reduce(0, group[order], places, "amin")
    turn = torch.empty_like(first)
    turn[first.argsort()] = torch.arange(count)
    return (turn % min(_FOLDS, max(2, count // 2)))[group]


def _folds_of(rows: Tensor) -> Tensor:
    """The fold of each by the row that it belongs to, shuffled."""
    _, index = rows.unique(return_inverse=True)
    count = int(index.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
    return (order % min(_FOLDS, max(2, count // 2)))[index]


class _Fits:
    """The same linear map fitted to several subsets of the rows, side by side.

    Weights and biases are kept in a unit of their own: the root of the loss of the best constant answers. For
    squared errors that is the spread of the labels, so that nothing depends on what they are measured in.

    Attributes:
        unit: that root.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        loss: Loss,
        masks: Sequence[Tensor],
        outputs: int,
        *,
        bias: bool,
        of_tokens: bool = False,
    ) -> None:
        self._loss, self.unit, self._of_tokens = loss, 1.0, of_tokens
        self._used = [(inputs[mask], labels[mask]) for mask in masks]
        self._kept = [(inputs[~mask], labels[~mask]) for mask in masks[:-1]]
        self._weights = [torch.zeros(outputs, inputs.shape[1], requires_grad=True) for _ in masks]
        self._biases = [torch.zeros(outputs, requires_grad=bias) for _ in masks]

    def begin_constant(self) -> None:
        """Find the best constant answers: only the biases learn."""
        if self._loss.in_units:
            self._begin_at_means()
        self.minimise(0.0, self._biases)
        with torch.no_grad():
            found = float(self._mean(len(self._used) - 1, *self._used[-1])) ** 0.5
            before, self.unit = self.unit, found if found > 0 else 1.0
            for bias in self._biases:
                bias *= before / self.unit

    @torch.no_grad()
    def _begin_at_means(self) -> None:
        """Begin near the answer, in a unit of the labels' size: with huge or tiny labels a descent from 0 in
        their own unit ends where it begins."""
        self.unit = float(self._used[-1][1].double().square().mean()) ** 0.5 or 1.0
        for bias, (_, labels) in zip(self._biases, self._used, strict=True):
            if bias.requires_grad:
                bias.fill_(float(labels.double().mean()) / self.unit)

    def _mean(self, index: int, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a fit on some rows."""
        logits = (inputs @ self._weights[index].T + self._biases[index]) * self.unit
        if self._of_tokens:  # each is a row of one token
            return self._loss.mean(logits[:, None], {"labels": labels[:, None]})
        return self._loss.mean(logits, {"labels": labels})

    def minimise(self, strength: float, among: Sequence[Tensor] | None = None) -> None:
        """Go on from the present values to the minimum for λ, over all parameters or `among` some."""
        parameters = [*self._weights, *self._biases] if among is None else among
        learned = [p for p in parameters if p.requires_grad]
        if not learned:
            return
        optimizer = torch.optim.LBFGS(learned, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros(())
            for index, rows in enumerate(self._used):
                # λ/2·‖W‖² in the same unit as the loss: both are divided by the unit's square.
                total = total + self._mean(index, *rows) / self.unit**2
                total = total + strength / 2 * self._weights[index].square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def held_out(self) -> Tensor:
        """Mean loss of each fit but the last on the rows that it has not seen, (fits - 1,)."""
        return torch.stack([self._mean(index, *rows) for index, rows in enumerate(self._kept)])

    def solution(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the last fit now."""
        weight, bias = (part.detach() * self.unit for part in (self._weights[-1], self._biases[-1]))
        return weight, bias if self._biases[-1].requires_grad else None
