"""A recipe on a live model: attach, train, detach without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.assets import is_packed, quantization_of, source_of
from autopeft.backbones import base_model_of, embedded_words, spec_of_model
from autopeft.counting import Counts
from autopeft.devices import generators_kept
from autopeft.display import percent, short, table
from autopeft.errors import UsageError, near
from autopeft.graph import CompositionGraph, build_graph, draw_box
from autopeft.hybrid.draws import seeded
from autopeft.hybrid.inputs import RUNS, Artefact, start_entries, with_inputs
from autopeft.hybrid.merging import WeightChanges, fold, fold_weights, write
from autopeft.hybrid.modules import (
    ROOT,
    Root,
    Untouched,
    build_modules,
    counts_of,
    head_of,
    refuse_attached,
    refuse_packed,
    whole,
)
from autopeft.hybrid.optimizer import build_optimizer, groups_of, groups_of_head
from autopeft.hybrid.persistence import Persistence
from autopeft.hybrid.policies import Policies
from autopeft.hybrid.schedule import RecipeSchedule
from autopeft.hybrid.store import save as save_files
from autopeft.injection import Injection, Part, changing
from autopeft.method import Calibration, Objective
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import tasks_of

if TYPE_CHECKING:
    from autopeft.hybrid.callback import HybridCallback
    from autopeft.hybrid.loss_step import Total

__all__ = ["Hybrid", "Measurements", "attach"]

Batches = Iterable[dict[str, Tensor]]


class Measurements(Protocol):
    """A store of earlier measurements, by method and `measurement()` (see `autopeft.method.Prepares`)."""

    def get(self, method: str, measurement: Mapping[str, Any]) -> dict[str, Tensor] | None: ...

    def put(self, method: str, measurement: Mapping[str, Any], measured: Mapping[str, Tensor]) -> None: ...


def attach(
    model: PreTrainedModel,
    recipe: Recipe,
    *,
    seed: int | None = None,
    runs: str | Path | None = RUNS,
    inputs: Mapping[str, Artefact] | None = None,
) -> Hybrid:
    """Put a recipe's modules on a model and freeze its backbone; the task head and the modules train.

    Args:
        model: any supported model, with or without a task head.
        recipe: the hybrid.
        seed: where the modules' random init starts, whatever other threads draw; the global generator is left
            alone then. Without it, the global generator is used.
        runs: the folder of the runs that the recipe's inputs name; with `None` no entry starts from its
            input, as where saved values follow.
        inputs: what the recipe starts from, by the hash of its content, where that was opened already.

    Raises:
        UsageError: the recipe does not fit the model, an input is missing or altered, a hybrid is attached
            already, or another thread is attaching one. The model is then unchanged.
    """
    with changing(model, f"attach {recipe.name!r}"):
        recipe, starts = (recipe, {}) if runs is None else with_inputs(recipe, runs, inputs)
        refuse_attached(model)
        spec, layout = spec_of_model(model)
        graph = build_graph(recipe, spec)
        with seeded(seed):
            modules = build_modules(graph)
        refuse_packed(model, layout, modules)
        hybrid = Hybrid(model, recipe, graph, Root(modules, recipe, spec))
        base = base_model_of(model)
        hybrid.injection = Injection(model, base, layout, graph, modules)
        try:
            hybrid.attached = True  # from here on detach() has something to undo
            head = {id(p) for p in hybrid.head_parameters()}
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in head)
            # In the model's own mode: a loaded model is in eval mode, where no dropout of ours may act.
            hybrid.root.to(next(base.parameters()).device).train(model.training)
            model.add_module(ROOT, hybrid.root)
            hybrid._persistence.install()
            with seeded(seed):
                hybrid.initialise(base)
                if starts:  # else values follow, as where a saved hybrid is loaded
                    hybrid._said = start_entries(recipe, hybrid.modules, starts, spec, source_of(model))
                given = {ref.name for ref in recipe.entries() if starts and ref.item.start}
                for composition in (modules[node.name] for node in graph.nodes()):
                    if hasattr(composition, "start"):
                        cast(Any, composition).start(modules, given)
                for name in hybrid.modules.keys() - hybrid.trained_modules.keys():
                    hybrid.root.get_submodule(name).requires_grad_(False)
                hybrid.injection.install()
        except BaseException:
            hybrid.detach()
            raise
        return hybrid


class Hybrid:
    """A recipe attached to a model. Made by `attach`; a context manager that detaches at its end.

    Attributes:
        model: the model, with the modules registered as `model.autopeft`.
        recipe: what is attached.
        graph: the recipe resolved on this backbone.
        spec: the backbone.
        root: the module that owns all modules.
        attached: whether it is on the model.
        prepared: whether calibration was done, by `prepare` or before the hybrid was saved.
    """

    injection: Injection

    def __init__(self, model: PreTrainedModel, recipe: Recipe, graph: CompositionGraph, root: Root) -> None:
        self.model, self.recipe, self.graph, self.spec = model, recipe, graph, graph.spec
        self.root = root
        self.attached = self._merged = self.prepared = False
        self._said: list[str] = []  # of its start
        self._untouched = Untouched(model)
        self._persistence = Persistence(model, self.reloaded)

    # Life
    # -----------------------------------------------------------------------------------------------------

    def initialise(self, base: PreTrainedModel) -> None:
        """Hand the modules what their init reads off the backbone."""
        for name, entry in self.graph.entries.items():
            module: Any = self.root.get_submodule(name)
            if hasattr(module, "initialise_prompt") and self.spec.modality == "text":
                module.initialise_prompt(embedded_words(base))
            if hasattr(module, "initialise") and "weight" in entry.ways:
                for target in module.weight_targets():
                    if target.site is None:
                        weight = whole(self.injection.base.get_parameter(target.tensor))
                    else:
                        place = self.injection.places[target.site.key]
                        stored = self.injection.base.get_parameter(f"{place.exit}.weight")
                        weight = Part(place.transposed, place.out_slice).of(whole(stored))
                    module.initialise(target, weight.detach())

    def detach(self) -> None:
        """Take everything off: every parameter, buffer, hook, flag and config value is as it was before
        `attach`, but for the head, which keeps what it learnt or what was loaded.

        The modules live on in `self.modules` and can be read; detaching twice does nothing.

        Raises:
            UsageError: another thread is in a forward of the hybrid, or attaches or detaches.
        """
        if not self.attached:
            return
        with changing(self.model, "detach it", self.injection.forwards):
            self.attached = False
            self.injection.remove()
            self._persistence.remove()
            self.model._modules.pop(ROOT, None)
            self._untouched.restore()

    def __enter__(self) -> Hybrid:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def require_attached(self) -> None:
        """Raises `UsageError` where it is detached."""
        if not self.attached:
            raise UsageError(
                f"The hybrid {self.recipe.name!r:.80} is detached from its model, which would be at work "
                "without it; attach its recipe again, or name the folder that it was saved in."
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it acts by; none where it acts alike on all."""
        return tasks_of(self.recipe)

    @property
    def task(self) -> str | None:
        """The task of rows whose forward does not say it (`task_id`). What acts by the task needs one."""
        number = self.injection.answering.task
        return None if number is None else self.tasks[number]

    @task.setter
    def task(self, name: str | None) -> None:
        if name is not None and name not in self.tasks:
            known = ", ".join(self.tasks) or "none, as it acts alike on all"
            raise UsageError(f"There is no task {name!r} here.{near(name, self.tasks)} Tasks: {known}.")
        self.injection.answering.task = None if name is None else self.tasks.index(name)

    # What it holds
    # --------------------------------------------------------------------------------------------

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Modules of entries and compositions, by name."""
        return dict(self.root.named_children())

    @property
    def trained_modules(self) -> dict[str, nn.Module]:
        """Those of `modules` that train and are told of it: without those of frozen entries."""
        frozen = {name for name, entry in self.graph.entries.items() if entry.frozen}
        return {name: module for name, module in self.modules.items() if name not in frozen}

    def head(self) -> dict[str, nn.Parameter]:
        """Parameters of the task head by their name in the model (see `head_of`)."""
        return head_of(self.model)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the task head."""
        return list(self.head().values())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Everything that training changes: modules, then the head."""
        return [*(p for p in self.root.parameters() if p.requires_grad), *self.head_parameters()]

    def counts(self) -> Counts:
        """The four figures, in closed form; of a `data_dependent` method what would be saved now."""
        return counts_of(self.graph, self.modules, sum(p.numel() for p in self.head_parameters()))

    def remarks(self) -> tuple[str, ...]:
        """Remarks on its start, and those of its modules on the finished training, a sentence each, behind
        the entry's name."""
        modules: dict[str, Any] = {n: m for n, m in self.modules.items() if hasattr(m, "remarks")}
        return (*self._said, *(f"{n}: {said}" for n, module in modules.items() for said in module.remarks()))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: one for each entry and composition with parameters, or those of its module's own
        `parameter_groups()`, parts that the recipe has a group for apart, and the head; dicts with `name`,
        `params`, `lr`, `weight_decay`.

        Settings come from the recipe's training section (see `autopeft.recipe.TrainingSection.settings`).
        """
        training, groups = self.recipe.training, list[dict[str, Any]]()
        for name, module in self.trained_modules.items():
            entry = getattr(module, "copies_of", None)
            if entry is None:
                groups += groups_of(name, self.graph.kind(name), module, training)
                continue
            there = {group["name"]: group for group in groups}  # of the entry too, which comes before
            for group in groups_of(entry, self.graph.kind(entry), module, training):
                there[group["name"]]["params"] += group["params"]
        return groups + groups_of_head(self.model, self.head(), training)

    def backbone_parameters(self) -> dict[str, nn.Parameter]:
        """The backbone's own parameters, named from the base model as its spec names them."""
        own = {id(p) for p in self.root.parameters()}
        return {n: p for n, p in self.injection.base.named_parameters() if id(p) not in own}

    def optimizer(self, **options: Any) -> torch.optim.Optimizer:
        """The recipe's optimizer over `parameter_groups()` after its policies, for a loop of one's own. For
        `transformers.Trainer` there is `for_trainer`, which has the recipe's schedule too.

        Multiplicative parameters decay towards the identity there too; clipping is up to the loop.

        Args:
            options: of the optimizer's class (by default `torch.optim.AdamW`), in place of the recipe's.

        Raises:
            UsageError: nothing trains, a policy finds nothing to act on, or calibration has yet to settle
                what does.
        """
        if self.needs_prepare:
            for name, entry in self.graph.entries.items():
                if entry.traits.data_dependent and "calibration" in entry.traits.needs:
                    raise UsageError(
                        f"{name} settles by calibration which parameters it has, and an optimizer that is "
                        "made before would train none of them; call `hybrid.prepare(batches, objective)` "
                        "first."
                    )
        training, modules = self.recipe.training, self.trained_modules
        policies = Policies(training)
        policies.refuse_idle(self.parameter_groups(), modules)
        groups = policies.adjust(self.parameter_groups(), modules)
        return build_optimizer(groups, training.optimizer, modules.values(), **options)

    # Training
    # -------------------------------------------------------------------------------------------------

    @property
    def needs_prepare(self) -> bool:
        """Whether some method still wants calibration batches before training."""
        return not self.prepared and any("calibration" in e.traits.needs for e in self.graph.entries.values())

    def prepare(
        self,
        batches: Batches | Callable[[int | None], Batches],
        objective: Objective,
        *,
        kept: Measurements | None = None,
    ) -> None:
        """Let the methods that need it look at data: batches, and the loss as a function of one.

        They see the backbone and its head bare, whatever else the recipe attaches, unless their `calibration`
        says otherwise: what they measure is then the same for every recipe. Every backbone parameter requires
        grad meanwhile; afterwards nothing of it has one.

        Args:
            batches: of single examples, or, where a method asks for more, a function that makes batches of so
                many (`None`: as many as a step has).
            kept: holds what was measured before, and is given what was not.
        """
        names = [n for n, e in self.graph.entries.items() if "calibration" in e.traits.needs]
        if not names:
            return
        if not callable(batches):
            single = batches if len(names) == 1 else list(batches)
            batches = lambda rows: single  # noqa: E731
        for name in names:
            module: Any = self.root.get_submodule(name)
            calibration = getattr(module, "calibration", Calibration())
            method, measurement = self.graph.entries[name].method.name, module.measurement()
            store = None if calibration.attached else kept
            if calibration != Calibration():
                measurement = {**measurement, "calibration": asdict(calibration)}
            measured = None if store is None else store.get(method, measurement)
            if measured is None:
                with self._calibrating(calibration):
                    measured = module.measure(self.injection.base, batches(calibration.rows), objective)
                if store is not None:
                    store.put(method, measurement, measured)
            module.settle(measured)
            self.refresh()  # the next one may see what is attached
        self.prepared = True

    @contextmanager
    def _calibrating(self, calibration: Calibration) -> Iterator[None]:
        """Within, the model is as a method wants to see it, and every parameter of the backbone requires a
        gradient. Random numbers drawn meanwhile do not count: settling draws the same where the measurement
        was kept."""
        flags = [(module, module.training) for module in self.model.modules()]
        drawn = generators_kept(self.injection.base.device)
        with nullcontext() if calibration.attached else self.bare(), drawn:
            # Nothing reads gradients of packed weights, and integers have none.
            own = self.injection.base.parameters()
            frozen = [p for p in own if not p.requires_grad and not is_packed(p)]
            try:
                for parameter in frozen:
                    parameter.requires_grad_(True)
                self.model.train(calibration.training)
                yield
            finally:
                for module, flag in flags:
                    module.training = flag
                for parameter in frozen:
                    parameter.requires_grad_(False)
                    parameter.grad = None
                self.model.zero_grad(set_to_none=True)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within, nothing that is attached acts."""
        with changing(self.model, "measure without it", self.injection.forwards):
            self.injection.remove()
            try:
                yield
            finally:
                self.injection.install()

    def refresh(self) -> None:
        """Install anew what acts, after the tensors or the sites of it changed."""
        self.require_attached()
        self.injection.refresh()

    def for_trainer(self, total: Total | None = None) -> dict[str, Any]:
        """The arguments with which `transformers.Trainer` trains this hybrid as its recipe says.

        These are `callbacks` with the events of the methods, `optimizers` with the recipe's groups, rates,
        policies and schedule (in place of `learning_rate`, `weight_decay`, `optim`, `lr_scheduler_type` and
        `warmup_steps` of `TrainingArguments`), and `compute_loss_func` where a module or a policy adds terms
        to the loss or a module acts on logits (a language model's then takes `total`).
        Steps, batches, clipping and whether the backbone's dropout acts (it does) stay the Trainer's.

        Args:
            total: the task's loss, summed over rows, of logits and labels (see `HybridCallback`).

        Raises:
            UsageError: modules train in phases, `optimizer` refuses, or the Trainer would refuse the model,
                as it does where it is quantised.

        Example:
            >>> Trainer(model, args, train_dataset=rows, **hybrid.for_trainer())       # doctest: +SKIP
        """
        quantizer: Any = getattr(self.model, "hf_quantizer", None)
        if quantizer is not None and not getattr(quantizer, "is_qat_trainable", False):
            raise UsageError(
                f"{type(self.model).__name__} is quantized ({quantization_of(self.model)}), and "
                "transformers.Trainer trains such models with peft's adapters alone; use "
                "autopeft.training.train or a loop of your own, or load the backbone in bf16."
            )
        self.require_attached()
        callback, optimizer = self.callback(total), self.optimizer()
        schedule = RecipeSchedule.over(optimizer, self.recipe.training)
        found: dict[str, Any] = {"callbacks": [callback], "optimizers": (optimizer, schedule)}
        owners = [*self.trained_modules.values(), *Policies(self.recipe.training).terms]
        terms = any(hasattr(owner, "loss_terms") for owner in owners)
        # TRL's own loss reads the weight of the last map, behind which nothing would act then.
        on_logits = any("logits" in entry.ways for entry in self.graph.entries.values())
        if total is not None or terms or on_logits:
            found["compute_loss_func"] = callback.loss
        return found

    def callback(self, total: Total | None = None) -> HybridCallback:
        """A `transformers.TrainerCallback` that fires the events of the methods inside
        `transformers.Trainer`; `total` is the task's loss summed over rows, for `callback.loss`.

        The Trainer's own optimizer knows no rate of the recipe: `for_trainer` gives both.
        """
        from autopeft.hybrid.callback import HybridCallback  # see `autopeft.hybrid.__getattr__`

        return HybridCallback(self, total)

    # Keeping
    # --------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write recipe, weights (deployed form, head included) and manifest; see `autopeft.hybrid.store`.

        `model.save_pretrained(folder)` writes them too, and what a training goes on from
        (`autopeft.hybrid.persistence`).
        """
        return save_files(folder, self.model, self.graph, self.modules, self.head())

    def reloaded(self) -> None:
        """Take over the values that the model has loaded for the modules, as when the Trainer resumes."""
        self.refresh()
        self.prepared = True

    def merge(self) -> PreTrainedModel:
        """Fold every module into the backbone's own weights and detach; the model then needs nothing of ours.

        Exact up to rounding (1e-5 in fp32); see `autopeft.hybrid.merging`.

        Raises:
            CompositionError: some module cannot be merged; nothing has changed then.
            UsageError: the backbone is quantised, or it was merged before.
        """
        self._refuse_packed()
        if self._merged:
            raise UsageError("This hybrid is in the backbone's weights already; merge() returned the model.")
        with changing(self.model, "merge it", self.injection.forwards):
            finished = fold(self.graph, self.modules, self.injection)
            later = self._untouched.changed()  # labels of the head, which stays, the padding token, …
            self.detach()
            write(self.model, self.injection.base, finished)
            self._untouched.put(later)
            self._merged = True
        return self.model

    def weight_changes(self) -> WeightChanges:
        """The hybrid as changes of the backbone's tensors, and where something else is left (see
        `fold_weights`). Nothing of the model changes.

        Raises:
            CompositionError: something acts where no linear map could take it.
            UsageError: the backbone is quantised.
        """
        self._refuse_packed()
        return fold_weights(self.graph, self.modules, self.injection)

    def _refuse_packed(self) -> None:
        found = quantization_of(self.model)
        if found is not None:
            raise UsageError(
                f"{type(self.model).__name__} is quantized ({found}), and nothing can be folded into packed "
                "weights; save the hybrid, and merge it on the backbone in bf16."
            )

    def __repr__(self) -> str:
        counts = counts_of(self.graph, self.modules, 0)  # without the head: what is being built has none yet
        size = f"{counts.deployed:,} deployed ({percent(counts.share)})"
        return f"Hybrid({short(self.recipe.name)!r} {self._where}: {self.recipe.brief}, {size})"

    def _repr_html_(self) -> str:
        """A small box for notebooks: the counts and the drawing."""
        figures = table(("", "parameters", "share"), self.counts().rows(), right=(1, 2))
        return draw_box(self.graph, self.recipe.name, figures, note=f"{self.recipe.brief}, {self._where}")

    @property
    def _where(self) -> str:
        return f"{'attached to' if self.attached else 'detached from'} {type(self.model).__name__}"
