"""A recipe on a live model: attach, train, detach without a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import base_model_of, spec_of_model
from autopeft.composition import get_composition
from autopeft.counting import Counts, count
from autopeft.errors import UsageError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.hybrid.callback import HybridCallback
from autopeft.hybrid.policies import apply_policies, refuse_idle
from autopeft.injection import Injection, Part, new_token
from autopeft.method import Objective, WeightTarget, check_module
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

__all__ = [
    "ROOT",
    "Hybrid",
    "Measurements",
    "Root",
    "Untouched",
    "attach",
    "build_modules",
    "deployed_form",
    "head_of",
    "refuse_attached",
    "seeded",
]

ROOT = "autopeft"  # the name under which a model holds what is attached


class Measurements(Protocol):
    """What methods measured before, by method and `measurement()` (see `autopeft.method.Prepares`)."""

    def get(self, method: str, measurement: Mapping[str, Any]) -> dict[str, Tensor] | None: ...

    def put(self, method: str, measurement: Mapping[str, Any], measured: Mapping[str, Tensor]) -> None: ...


class Root(nn.Module):
    """Owner of everything that a hybrid trains, registered once on the model as `autopeft`."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def attach(model: PreTrainedModel, recipe: Recipe, *, seed: int | None = None) -> Hybrid:
    """Put a recipe's modules on a model and freeze its backbone; the task head and the modules train.

    Args:
        model: any supported model, with or without a task head.
        recipe: the hybrid.
        seed: where the modules' random init starts; the global generator is left alone then. Without it, the
            global generator is used.

    Raises:
        UsageError: the recipe does not fit the model, or a hybrid is attached already. The model is then
        unchanged.
    """
    refuse_attached(model)
    spec, layout = spec_of_model(model)
    graph = build_graph(recipe, spec)
    with seeded(seed):
        modules = build_modules(graph)
    hybrid = Hybrid(model, recipe, graph, Root(modules), Untouched(model))
    base = base_model_of(model)
    hybrid.injection = Injection(model, base, layout, graph, modules, new_token())
    try:
        with seeded(seed):
            hybrid._enter()
    except BaseException:
        hybrid.detach()
        raise
    return hybrid


def refuse_attached(model: PreTrainedModel) -> None:
    """Raise UsageError if the model has a hybrid."""
    if any(isinstance(m, Root) for m in model.modules()):
        raise UsageError(f"{type(model).__name__} has a hybrid attached already; call detach() on it first.")


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from `seed` and leave torch's global CPU generator as it was (modules are made on the CPU)."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def build_modules(graph: CompositionGraph) -> dict[str, nn.Module]:
    """The modules of a graph's entries and compositions, by name.

    Raises:
        MethodError: a module has a member that nothing would call (see `check_module`).
    """
    modules: dict[str, nn.Module] = {}
    for name, entry in graph.entries.items():
        modules[name] = entry.method.build(entry.sites, graph.spec)
        check_module(modules[name], entry.ways, f"Method {entry.method.name!r}")
    for node in graph.nodes():
        specs = [graph.child_spec(c) for c in node.children]
        modules[node.name] = get_composition(node.kind).build(specs, dict(node.options))
    return modules


def deployed_form(module: nn.Module) -> nn.Module:
    """A copy of a module without what only training needed; a module that has nothing such, itself."""
    if not hasattr(module, "deploy"):
        return module
    copied: Any = copy.deepcopy(module)
    copied.deploy()
    return cast(nn.Module, copied)


def head_of(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters of a model's task head by name: what lies beside the base model, unless it is a pretrained
    language-model head."""
    if model.get_output_embeddings() is not None:
        return {}
    base = base_model_of(model)
    inside = {id(p) for owner in (base, model._modules.get(ROOT)) if owner for p in owner.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in inside}


class Untouched:
    """What attaching alters on a model beside its modules and hooks: which parameters train, and configs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._requires_grad = [(p, p.requires_grad) for p in model.parameters()]
        self._configs = [(c, copy.deepcopy(c.__dict__)) for c in _configs(model)]

    def restore(self) -> None:
        """Put flags and config values back as they were; parameters frozen then keep no gradient."""
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
            if not flag:
                parameter.grad = None
        for config, values in self._configs:
            config.__dict__.clear()
            config.__dict__.update(copy.deepcopy(values))


class Hybrid:
    """A recipe attached to a model. Made by `attach`; a context manager that detaches at its end.

    Attributes:
        model: the model, with the modules registered as `model.autopeft`.
        recipe: what is attached.
        graph: the recipe resolved on this backbone.
        prepared: whether calibration was done, by `prepare` or before the hybrid was saved.
    """

    injection: Injection

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: Recipe,
        graph: CompositionGraph,
        root: Root,
        untouched: Untouched,
    ) -> None:
        self.model, self.recipe, self.graph = model, recipe, graph
        self._root = root
        self._attached = False
        self.prepared = False
        self._untouched = untouched

    # Life
    # -----------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        self._attached = True  # from here on detach() has something to undo
        base = base_model_of(self.model)
        head = {id(p) for p in self.head_parameters()}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in head)
        # In the model's own mode: a loaded model is in eval mode, where no dropout of ours may act.
        self._root.to(next(base.parameters()).device).train(self.model.training)
        self.model.add_module(ROOT, self._root)
        self.initialise(base)
        self.injection.install()

    def initialise(self, base: PreTrainedModel) -> None:
        """Hand the modules what their init reads off the backbone."""
        for name, entry in self.graph.entries.items():
            module: Any = self._root.get_submodule(name)
            if hasattr(module, "initialise_prompt") and self.spec.modality == "text":
                module.initialise_prompt(cast(Tensor, base.get_input_embeddings().weight).detach())
            if hasattr(module, "initialise") and "weight" in entry.ways:
                for target, weight in self._weights_of(module):
                    module.initialise(target, weight.detach())

    def _weights_of(self, module: Any) -> Iterator[tuple[WeightTarget, Tensor]]:
        for target in module.weight_targets():
            if target.site is None:
                yield target, self.injection.base.get_parameter(target.tensor)
            else:
                place = self.injection.places[target.site.key]
                part = Part(place.transposed, place.out_slice)
                yield target, part.of(self.injection.base.get_parameter(f"{place.exit}.weight"))

    def detach(self) -> None:
        """Take everything off: every parameter, buffer, hook, flag and config value is as it was before
        `attach`.

        The modules live on in `self.modules` and can be read; detaching twice does nothing.
        """
        if not self._attached:
            return
        self._attached = False
        self.injection.remove()
        self.model._modules.pop(ROOT, None)
        self._untouched.restore()

    def __enter__(self) -> Hybrid:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        return self._attached

    # What it holds
    # --------------------------------------------------------------------------------------------

    @property
    def spec(self) -> BackboneSpec:
        return self.graph.spec

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Modules of entries and compositions, by name."""
        return dict(self._root.named_children())

    @property
    def root(self) -> nn.Module:
        """The module that owns them all."""
        return self._root

    def head(self) -> dict[str, nn.Parameter]:
        """Parameters of the task head by their name in the model (see `head_of`)."""
        return head_of(self.model)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the task head."""
        return list(self.head().values())

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Everything that training changes: modules, then the head."""
        return [*(p for p in self._root.parameters() if p.requires_grad), *self.head_parameters()]

    def counts(self) -> Counts:
        """The four figures, in closed form; of a `data_dependent` method what would be saved now."""
        counts = count(self.graph, self.spec, head=sum(p.numel() for p in self.head_parameters()))
        deployed = counts.deployed
        for name, entry in self.graph.entries.items():
            if entry.traits.data_dependent:
                held = deployed_form(self._root.get_submodule(name))
                deployed += sum(p.numel() for p in held.parameters()) - entry.count.deployed
        return replace(counts, deployed=deployed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: one for each entry and composition with parameters, or those of its module's own
        `parameter_groups()`, and the head; dicts with `name`, `params`, `lr`, `weight_decay`.

        Settings come from the recipe's training section: a group named like the entry, else like its method,
        else the section's own.
        """
        groups = []
        for name, module in self._root.named_children():
            parameters = [p for p in module.parameters() if p.requires_grad]
            entry = self.graph.entries.get(name)
            kind = entry.method.name if entry is not None else self._kind(name)
            own: Callable[[], list[dict[str, Any]]] | None = getattr(module, "parameter_groups", None)
            settings = self._settings(name, kind)
            if own is not None:
                for group in own():
                    suffix = f".{group['name']}" if "name" in group else ""
                    groups.append({**settings, **group, "name": f"{name}{suffix}"})
            elif parameters:
                groups.append({"name": name, "params": parameters, **settings})
        head = self.head_parameters()
        if head:
            groups.append({"name": "head", "params": head, **self._settings("head", "head")})
        return groups

    def _kind(self, name: str) -> str:
        return next(n.kind for n in self.graph.nodes() if n.name == name)

    def _settings(self, name: str, kind: str) -> dict[str, float]:
        rate, decay = self.recipe.training.settings_of(name, kind)
        return {"lr": rate, "weight_decay": decay}

    def optimizer(self, **options: Any) -> torch.optim.AdamW:
        """AdamW over `parameter_groups()` after the recipe's policies, for a loop of one's own or
        `transformers.Trainer(optimizers=(hybrid.optimizer(), None))`; options are AdamW's.

        Raises:
            UsageError: a policy finds nothing to act on.
        """
        refuse_idle(self.parameter_groups(), self.recipe.training, self.modules)
        groups = apply_policies(self.parameter_groups(), self.recipe.training, self.modules)
        return torch.optim.AdamW(groups, **options)

    # Training
    # -------------------------------------------------------------------------------------------------

    @property
    def needs_prepare(self) -> bool:
        """Whether some method still wants calibration batches before training."""
        return not self.prepared and any("calibration" in e.traits.needs for e in self.graph.entries.values())

    def prepare(
        self,
        batches: Iterable[dict[str, Tensor]],
        objective: Objective,
        *,
        kept: Measurements | None = None,
    ) -> None:
        """Let the methods that need it look at data: single-example batches, and the loss as a function of
        one.

        They see the backbone and its head bare, whatever else the recipe attaches: what they measure is then
        the same for every recipe. Every backbone parameter requires grad meanwhile; afterwards nothing of it
        has one. `kept` holds what was measured before, and is given what was not.
        """
        wanting = [n for n, e in self.graph.entries.items() if "calibration" in e.traits.needs]
        if not wanting:
            return
        rows = batches if len(wanting) == 1 else list(batches)
        for name in wanting:
            module: Any = self._root.get_submodule(name)
            method, measurement = self.graph.entries[name].method.name, module.measurement()
            measured = None if kept is None else kept.get(method, measurement)
            if measured is None:
                with self._bare(), self._unfrozen():
                    measured = module.measure(self.injection.base, rows, objective)
                if kept is not None:
                    kept.put(method, measurement, measured)
            module.settle(measured)
        self.refresh()
        self.prepared = True

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """Within, nothing that is attached acts."""
        self.injection.remove()
        try:
            yield
        finally:
            self.injection.install()

    @contextmanager
    def _unfrozen(self) -> Iterator[None]:
        frozen = [p for p in self.injection.base.parameters() if not p.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
                parameter.grad = None
            self.model.zero_grad(set_to_none=True)

    def refresh(self) -> None:
        """Install the weight deltas anew, after their targets changed."""
        self.injection.refresh_weights()

    def callback(self, total: Callable[[Tensor, Tensor], Tensor] | None = None) -> HybridCallback:
        """A `transformers.TrainerCallback` that fires the events of the methods inside
        `transformers.Trainer`; `total` is the task's loss summed over rows, for `callback.loss`."""
        return HybridCallback(self, total)

    # Keeping
    # --------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write recipe, weights (deployed form, head included) and manifest; see `autopeft.hybrid.store`."""
        from autopeft.hybrid.store import save

        return save(self, folder)

    def merge(self) -> PreTrainedModel:
        """Fold every module into the backbone's own weights and detach; the model then needs nothing of ours.

        Raises:
            CompositionError: some module cannot be merged; nothing has changed then.
        """
        from autopeft.hybrid.merging import merge

        return merge(self)

    def __repr__(self) -> str:
        state = "attached" if self._attached else "detached"
        return f"Hybrid({self.recipe.name!r}, {', '.join(self.graph.entries)}; {state})"


def _configs(model: PreTrainedModel) -> list[Any]:
    found: dict[int, Any] = {}
    for module in model.modules():
        for name in ("config", "generation_config"):
            config = module.__dict__.get(name)
            if config is not None and hasattr(config, "to_dict"):
                found[id(config)] = config
    return list(found.values())
