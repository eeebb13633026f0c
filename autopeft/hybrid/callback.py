"""The events of a hybrid's modules inside `transformers.Trainer`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainingArguments

from autopeft.errors import UsageError
from autopeft.hybrid.events import fire, loss_terms
from autopeft.hybrid.loss_step import Divergence, Step, Total, apart_by_labels
from autopeft.hybrid.policies import Policies
from autopeft.hybrid.schedule import RecipeSchedule
from autopeft.injection.frames import frames
from autopeft.injection.sequence import named_inputs
from autopeft.method import LossStep, Phase, decay_targets
from autopeft.recipe import Recipe
from autopeft.recipe.optimizer import DEFAULT_OPTIMIZER

__all__ = ["HybridCallback"]


_IGNORED = -100  # a label that carries no loss, as transformers has it
_LEFT_OUT = (
    "A module or a policy of this hybrid adds terms to the loss, which the Trainer leaves out; pass "
    "`**hybrid.for_trainer()` to it, or `compute_loss_func=callback.loss` with "
    "`callback = hybrid.callback()`."
)
_REPLICAS = (
    "With {0} GPUs in one process the Trainer trains copies of the model (DataParallel), which a "
    "hybrid does not follow. Start one process for each GPU (`torchrun --nproc-per-node {0} …`), or let the "
    "Trainer see one GPU (CUDA_VISIBLE_DEVICES=0)."
)


class _Attached(Protocol):
    @property
    def recipe(self) -> Recipe: ...

    @property
    def needs_prepare(self) -> bool: ...

    @property
    def trained_modules(self) -> Mapping[str, nn.Module]: ...


class _LeftOut:
    """Stands for a step whose terms nobody adds: it refuses whoever asks it for something."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError(_LEFT_OUT)


class _Seen:
    """The inputs of the latest forward of the Trainer's model, for further ones of the same rows.

    Attributes:
        model: that is watched; a module of no use before the training.
        inputs: by name, without labels.
    """

    def __init__(self) -> None:
        self.model: nn.Module = nn.Identity()
        self.inputs: dict[str, Any] = {}
        self._handle: RemovableHandle | None = None

    def watch(self, model: nn.Module | None) -> None:
        """Watch this model and no other; `None`: none."""
        if self._handle is not None:
            self._handle.remove()
        self.model, self.inputs, self._handle = model or nn.Identity(), {}, None
        if model is not None:
            self._handle = model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not frames.further:
            self.inputs = {**named_inputs(inspect.signature(module.forward), args, kwargs)}

    def forward(self, batch: Mapping[str, Any], altered: bool) -> Tensor:
        """Logits of a batch.

        Raises:
            UsageError: no model is watched.
        """
        if self._handle is None:
            raise UsageError(
                "A term of the loss asks for a further forward of the model, which `callback.loss` knows "
                "while the Trainer trains alone."
            )
        return _logits(self.model(**{k: v for k, v in batch.items() if k != "labels"}))


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits.float()


class HybridCallback(TrainerCallback):
    """Fires `before_step`, `after_backward`, `before_update`, `after_step` and `finish` on a hybrid's modules
    and its recipe's policies.

    It is one part of what `hybrid.for_trainer()` gives. The Trainer's own optimizer has one rate for all,
    5e-5 by default, and knows no group, policy or schedule of the recipe; a callback cannot add to the
    Trainer's loss. So a hybrid is trained as in the example.
    The Trainer clips gradients before `after_backward`, our own loop after it; methods that mask
    gradients see their norm counted with the masked part. Calibration (`hybrid.prepare`) comes before the
    Trainer, and what a module concludes (`module.conclude`) after it.

    Example:
        >>> Trainer(model, args, train_dataset=rows, **hybrid.for_trainer())          # doctest: +SKIP

    Args:
        total: the task's loss, summed over rows, of logits and the batch with its `labels`:
            `task.loss().total`. Default: by the labels (see `loss`).

    Raises:
        UsageError: modules train in phases, or in one that is more than the Trainer's own, which it cannot
            run; or, when training starts, a module wants calibration and had none; or, at the first step, a
            module or a policy has loss terms and `callback.loss` is not used.
    """

    def __init__(self, hybrid: _Attached, total: Total | None = None) -> None:
        self.hybrid, self._total = hybrid, total or _by_labels
        # Of `task.loss().total` the loss itself knows how its logits are read.
        self._apart: Divergence = getattr(getattr(total, "__self__", None), "divergence", apart_by_labels)
        self._policies = Policies(hybrid.recipe.training)
        self._loss_used = False  # whether this step's loss came by `callback.loss`
        self._seen = _Seen()
        declared: dict[str, list[Phase]] = {
            name: list(cast(Any, module).phases())
            for name, module in hybrid.trained_modules.items()
            if hasattr(module, "phases")
        }
        # A single phase that trains everything on the training split, and does no more, is the Trainer's own.
        plain = [phase == Phase(phase.name, phase.share) for phases in declared.values() for phase in phases]
        if declared and plain != [True]:
            said = "; ".join(
                f"{name}: {', '.join(p.name for p in found)}" for name, found in declared.items()
            )
            raise UsageError(
                f"{', '.join(declared)} trains in phases ({said}), which `transformers.Trainer` cannot run; "
                "use `autopeft.training.train`."
            )

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The task's loss plus the terms of modules and policies, as the Trainer's `compute_loss_func`.

        The task's loss is the `total` that the callback was made with; else cross-entropy over integer labels
        (rows,) and squared error for real ones. Sums are divided by `num_items_in_batch`, so that gradient
        accumulation equals the large batch; of labels (rows, tokens) the Trainer counts those that are not
        -100. Terms may ask for further forwards while the Trainer trains (see `autopeft.method.LossStep`).
        """
        self._loss_used = True
        logits = _logits(outputs)
        counted = labels.shape[0] if labels.ndim == 1 else int((labels != _IGNORED).sum())
        items = max(counted, 1) if num_items_in_batch is None else num_items_in_batch
        step = Step(
            self._seen.model,
            {**self._seen.inputs, "labels": labels},
            logits,
            forward=self._seen.forward,
            total=self._total,
            apart=self._apart,
            divisor=max(counted, 1),
        )
        terms = loss_terms(self._owners(), step)
        total = self._total(logits, step.batch)
        for _ in range(1, step.draws):
            total = total + self._total(step.again(), step.batch)
        total = total / step.draws
        return total / items if terms is None else (total + terms * counted) / items

    def _owners(self) -> list[Any]:
        """Modules and policies."""
        return [*self.hybrid.trained_modules.values(), *self._policies.terms]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.hybrid.needs_prepare:
            raise UsageError(
                "A module of this hybrid is not calibrated yet and would train nothing; call "
                "`hybrid.prepare(batches, objective)` before the Trainer's train()."
            )
        if getattr(args, "n_gpu", 1) > 1:
            raise UsageError(_REPLICAS.format(args.n_gpu))
        self._seen.watch(kwargs.get("model"))
        training, optimizer = self.hybrid.recipe.training, kwargs.get("optimizer")
        scheduler = kwargs.get("lr_scheduler")
        found = [f for f in getattr(scheduler, "lr_lambdas", ()) if isinstance(f, RecipeSchedule)]
        if found:
            RecipeSchedule.begin(cast(LambdaLR, scheduler), state.global_step, state.max_steps)
            theirs = float(getattr(args, "max_grad_norm", None) or 0.0)
            if training.max_grad_norm != theirs:
                warnings.warn(
                    f"The recipe clips gradients to the norm {training.max_grad_norm:g} and the Trainer to "
                    f"{theirs:g}; pass max_grad_norm={training.max_grad_norm:g} to TrainingArguments.",
                    stacklevel=3,
                )
            apart = [
                group for group in getattr(optimizer, "param_groups", ()) if group.get("clip") == "group"
            ]
            if training.optimizer.clip != "all" or apart:
                warnings.warn(
                    "The recipe clips gradients of groups by themselves, and the Trainer clips all together; "
                    "`autopeft.training.train` does what the recipe says.",
                    stacklevel=3,
                )
        if optimizer is None or any("name" in group for group in optimizer.param_groups):
            return
        # The optimizer is the Trainer's, or lacks what the recipe says. It is not changed here: by now the
        # Trainer has prepared it and filled it from a checkpoint, and the user may have chosen its rate.
        own = any(hasattr(module, "parameter_groups") for module in self.hybrid.trained_modules.values())
        own = own or training.optimizer != DEFAULT_OPTIMIZER
        if getattr(args, "weight_decay", 0.0) and decay_targets(self.hybrid.trained_modules.values()):
            own = True  # the Trainer would have them decay towards zero
        way_out = "pass `**hybrid.for_trainer()` to the Trainer, in place of `callbacks=`."
        if training.groups or training.policies or own:
            warnings.warn(
                "This recipe has an optimizer, decay, learning rates, policies or parameter groups of its "
                f"own, and the Trainer's optimizer knows none of them; {way_out}",
                stacklevel=2,
            )
            return
        rates = {group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}
        default = TrainingArguments.learning_rate
        if rates == {default} != {training.learning_rate}:
            warnings.warn(
                f"The Trainer's optimizer trains this hybrid at {default:g}, its default for whole models, "
                f"and the recipe says {training.learning_rate:g}; {way_out}",
                stacklevel=2,
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._loss_used = False
        self._event("before_step", state, kwargs)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._loss_used and loss_terms(self._owners(), cast(LossStep, _LeftOut())) is not None:
            raise UsageError(_LEFT_OUT)
        self._event("after_backward", state, kwargs)
        self._event("before_update", state, kwargs)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not at the step's end: the Trainer has dropped the gradients by then.
        self._event("after_step", state, kwargs)

    def _event(self, event: str, state: Any, kwargs: Mapping[str, Any]) -> None:
        """Tell modules, then policies, where the optimizer has the recipe's groups."""
        fire(event, self.hybrid.trained_modules.values(), state.global_step, state.max_steps)
        groups = getattr(kwargs.get("optimizer"), "param_groups", ())
        if any("name" in group for group in groups):
            self._policies.fire(event, groups, state.global_step, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seen.watch(None)
        with torch.no_grad():
            fire("finish", self.hybrid.trained_modules.values())


def _by_labels(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The summed loss that fits the labels (rows,): cross-entropy for integers, squared error for reals."""
    labels = batch["labels"]
    if labels.ndim != 1:
        raise UsageError(
            f"`callback.loss` takes one label per row, but got labels of shape {tuple(labels.shape)}; give "
            "the task's own loss: `hybrid.callback(total=task.loss().total)`."
        )
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum")
