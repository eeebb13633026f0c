"""The modules of a hybrid and what attaching them alters on a model, apart from the hooks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.assets import is_packed, keep_differentiable, quantization_of
from autopeft.backbones import Layout, base_model_of
from autopeft.composition import get_composition
from autopeft.counting import Counts, count
from autopeft.errors import RecipeError, UsageError
from autopeft.graph import CompositionGraph
from autopeft.method import WeightTarget, check_module, no_such_part, parts_of
from autopeft.recipe import Recipe
from autopeft.recipe.training import address
from autopeft.spec import BackboneSpec

__all__ = [
    "ROOT",
    "Root",
    "Untouched",
    "active_modules",
    "build_modules",
    "counts_of",
    "deployed_form",
    "deployed_modules",
    "head_of",
    "refuse_attached",
    "refuse_packed",
    "whole",
]

ROOT = "autopeft"  # the name under which a model holds what is attached


class Root(nn.Module):
    """Owner of everything that a hybrid trains, registered once on the model as `autopeft`.

    Attributes:
        recipe, spec: what was built and for which backbone. A copy of the model can be saved by them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], recipe: Recipe, spec: BackboneSpec) -> None:
        super().__init__()
        self.recipe, self.spec = recipe, spec
        for name, module in modules.items():
            self.add_module(name, module)


def active_modules(model: nn.Module) -> list[nn.Module]:
    """All submodules of a model's hybrid; none where it has no hybrid."""
    root: nn.Module | None = getattr(model, ROOT, None)
    return [] if root is None else list(root.modules())


def refuse_attached(model: PreTrainedModel) -> None:
    """Raise UsageError if the model has a hybrid."""
    root = next((m for m in model.modules() if isinstance(m, Root)), None)
    if root is not None:
        raise UsageError(
            f"{type(model).__name__} has a hybrid attached already ({root.recipe.name!r}); call detach() on "
            "it first."
        )


def refuse_packed(model: PreTrainedModel, layout: Layout, modules: Mapping[str, nn.Module]) -> None:
    """Raise UsageError if the model is quantised and something would train or alter a tensor that is
    packed: the task head, or a module that acts on weights; or if no gradient would pass (see
    `keep_differentiable`)."""
    found = quantization_of(model)
    if found is None:
        return
    keep_differentiable(model)
    what = f"{type(model).__name__} is quantized ({found})"
    head = [name for name, parameter in head_of(model).items() if is_packed(parameter)]
    if head:
        part = head[0].partition(".")[0]
        raise UsageError(
            f"{what}, its task head {part!r} too, which has to train; leave that out when you load the model "
            f"(llm_int8_skip_modules={[part]} for bitsandbytes, modules_to_not_convert={[part]} for others)."
        )
    base, places = base_model_of(model), {place.site.key: place for place in layout.places()}

    def packed(target: WeightTarget) -> bool:
        name = target.tensor if target.site is None else f"{places[target.site.key].exit}.weight"
        return is_packed(base.get_parameter(str(name)))

    altering = [
        name
        for name, module in modules.items()
        if hasattr(module, "weight_targets") and any(map(packed, cast(Any, module).weight_targets()))
    ]
    if altering:
        raise UsageError(
            f"{what}, and {', '.join(altering)} would work on its packed weights; attach methods that act on "
            "activations alone, such as lora or serial_adapter, or load the backbone in bf16."
        )


def whole(parameter: nn.Parameter) -> Tensor:
    """A parameter in full, also where this process holds a part of it (torch's `DTensor`): then all processes
    that hold some have to ask."""
    gathered: Any = getattr(parameter, "full_tensor", None)
    found: Tensor = parameter if gathered is None else gathered()
    return found


def build_modules(graph: CompositionGraph) -> dict[str, nn.Module]:
    """The modules of a graph's entries and compositions, by name.

    Raises:
        CompositionError: a composition cannot hold what was built.
        MethodError: a module has a member that nothing would call (see `check_module`).
        RecipeError: the recipe has a group for a part that a module does not have.
    """
    modules: dict[str, nn.Module] = {}
    for name, entry in graph.entries.items():
        modules[name] = entry.method.build(entry.sites, graph.spec)
        peft = getattr(entry.method, "peft", None)
        check_module(modules[name], entry.ways, f"Method {entry.method.name!r}", peft)
    for node in graph.nodes():
        specs = [graph.child_spec(c) for c in node.children]
        modules[node.name] = get_composition(node.kind).build(specs, dict(node.options))
        check: Any = getattr(modules[node.name], "check_modules", None)
        if check is not None:
            check({entry.name: modules[entry.name] for entry in graph.leaves(node)})
    for group in graph.recipe.training.groups:
        name, part = address(group)
        if part and name != "head":
            there = [p for n, m in modules.items() if name in (n, graph.kind(n)) for p in parts_of(m)]
            if part not in there:
                known = list(dict.fromkeys(there))
                raise RecipeError(f"training.groups.{group}: {no_such_part(name, part, known)}")
    return modules


def deployed_form(module: nn.Module) -> nn.Module:
    """A copy of a module without what only training needed; a module that has nothing such, itself."""
    if not hasattr(module, "deploy"):
        return module
    copied: Any = copy.deepcopy(module)
    copied.deploy()
    return cast(nn.Module, copied)


def deployed_modules(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules of a hybrid, by name, as they are deployed: with the values that compositions give what is
    under them, and without what only training needed. Those that stay as they are, themselves; the others are
    copies."""
    found = dict(modules)
    for module in modules.values():
        if hasattr(module, "deployed"):
            found |= cast(Any, module).deployed(found)
    return {name: deployed_form(module) for name, module in found.items()}


def counts_of(graph: CompositionGraph, modules: Mapping[str, nn.Module], head: int) -> Counts:
    """The four figures, in closed form; of a `data_dependent` method what would be saved now, and what trains
    now where calibration settles it. `head` is the number of parameters of the task head."""
    counts = count(graph, graph.spec, head=head)
    deployed, trained = counts.deployed, counts.trained
    for name, entry in graph.entries.items():
        if entry.traits.data_dependent:
            deployed += _size(deployed_form(modules[name])) - entry.count.deployed
            if "calibration" in entry.traits.needs:
                trained += _size(modules[name]) - entry.count.trained
    return replace(counts, deployed=deployed, trained=trained)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def head_of(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters of a model's task head by name: what lies beside the base model, unless it is a pretrained
    language-model head."""
    if model.get_output_embeddings() is not None:
        return {}
    base, found = base_model_of(model), dict[str, nn.Parameter]()
    seen = {id(p) for p in base.parameters()}
    beside = [(n, child) for n, child in model.named_children() if child is not base and n != ROOT]
    whole = ((f"{n}.{own}", p) for n, child in beside for own, p in child.named_parameters())
    for name, parameter in (*model.named_parameters(recurse=False), *whole):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    return found


_PLAIN = (str, int, float, bool, list, tuple, dict, type(None))
_OURS = "_attn_implementation"  # what the injection sets


class Untouched:
    """A model's state before attaching, to restore it: which parameters train, and all configs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._requires_grad = [(p, p.requires_grad) for p in model.parameters()]
        configs: dict[int, Any] = {}
        for module in model.modules():
            for name in ("config", "generation_config"):
                config = module.__dict__.get(name)
                if config is not None and hasattr(config, "to_dict"):
                    configs[id(config)] = config
        self._configs = [(config, copy.deepcopy(config.__dict__)) for config in configs.values()]

    def changed(self) -> list[dict[str, Any]]:
        """The plain values of each config that somebody has set since then: labels, the padding token, …."""
        return [
            {
                name: copy.deepcopy(value)
                for name, value in config.__dict__.items()
                if isinstance(value, _PLAIN) and not name.startswith(_OURS)
                if name not in before or before[name] != value
            }
            for config, before in self._configs
        ]

    def put(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Set the values that `changed` gave."""
        for (config, _), own in zip(self._configs, values, strict=True):
            config.__dict__.update(own)

    def restore(self) -> None:
        """Put flags and config values back as they were; parameters frozen then keep no gradient."""
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
            if not flag:
                parameter.grad = None
        for config, values in self._configs:
            config.__dict__.clear()
            config.__dict__.update(copy.deepcopy(values))
