"""Puts a graph's modules onto a live model, and takes them off again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from autopeft.backbones import Layout, Place, projection_of
from autopeft.errors import CompositionError, SiteError
from autopeft.graph import CompositionGraph
from autopeft.injection.attention import DELEGATES, AttentionHooks, configs_of
from autopeft.injection.bind import BoundModule, Role, bind, bound, has_role
from autopeft.injection.dispatch import ModuleHooks, SiteDispatcher
from autopeft.injection.frames import TOKENS, frames
from autopeft.injection.late import LateHooks, require_room
from autopeft.injection.logits import LogitsHook
from autopeft.injection.regions import FirstRow, RegionForward, Replacing, narrowed
from autopeft.injection.sequence import Answering, RootHooks
from autopeft.injection.threads import Forwards
from autopeft.injection.undispatched import OwnForward, dispatching, is_undispatched
from autopeft.injection.weights import ParameterPatch, Part, WeightHooks, owners_of
from autopeft.method import BARE, Context, WeightTarget
from autopeft.spec import Site

__all__ = ["Injection"]

_FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps what it checkpoints a layer with


@dataclass
class Checkpointed:
    """A checkpointing function that lays down the contexts of its forward before the layer runs again."""

    function: Callable[..., Any]
    contexts: dict[tuple[int, str], Context]

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.function(partial(self._run, layer), *args, **kwargs)

    def _run(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frames.contexts.update(self.contexts)
        return layer(*args, **kwargs)


@dataclass
class LayerHooks:
    """Keeps a hybrid's contexts of a forward with the checkpoint of a layer.

    Recomputation runs the layer's forward and neither its hooks nor the root's, and starts with modules that
    see no keyword arguments (a norm in front of the attention), while other forwards may have begun since.
    """

    token: int

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        function = module.__dict__.get(_FUNCTION)
        if function is not None and module.training and torch.is_grad_enabled():
            contexts = {key: context for key, context in frames.contexts.items() if key[0] == self.token}
            module.__dict__[_FUNCTION] = Checkpointed(function, contexts)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        function = module.__dict__.get(_FUNCTION)
        if isinstance(function, Checkpointed):
            module.__dict__[_FUNCTION] = function.function


class Injection:
    """All hooks of one hybrid on one model.

    Args:
        model: the model, task head included.
        base: its base model; places are relative to it.
        layout: where the sites are.
        graph: what acts where.
        modules: entries' and compositions' modules by name.

    Attributes:
        token: the hybrid's number, unique in this process.

    Raises:
        SiteError: the model lacks a site that the graph uses.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        base: PreTrainedModel,
        layout: Layout,
        graph: CompositionGraph,
        modules: Mapping[str, nn.Module],
    ) -> None:
        self.model, self.base, self.layout = model, base, layout
        self.graph, self.modules, self.token = graph, modules, next(TOKENS)
        self.places: dict[str, Place] = {p.site.key: p for p in layout.places()}
        missing = [s.path for s in graph.sites() if s.key not in self.places]
        if missing:
            raise SiteError(
                f"{type(model).__name__} lacks {', '.join(missing[:5])}; load the whole model, or leave "
                "these sites out."
            )
        self._handles: list[RemovableHandle | OwnForward | Replacing | RegionForward] = []
        self._weight_handles: list[RemovableHandle] = []
        self._weights: dict[nn.Module, WeightHooks] = {}
        self._acting: frozenset[tuple[object, ...]] = frozenset()
        self.forwards = Forwards(f"the hybrid {graph.recipe.name!r}")
        self.answering = Answering()
        self.revision = 0  # rises whenever other tensors may be altered than before

    def install(self) -> None:
        """Register every hook.

        Raises:
            CompositionError: the model's attention does not dispatch, so that prefixes would be ignored, or a
                region is no single module of this model.
        """
        self._acting = self.acting()
        self.refresh_weights()

        for path, site_hook in self.site_hooks().items():
            module = self.base.get_submodule(path)
            if site_hook.entries or site_hook.residuals:
                self._handles.append(module.register_forward_pre_hook(site_hook.before, with_kwargs=True))
            if site_hook.exits:
                self._handles.append(module.register_forward_hook(site_hook.after, with_kwargs=True))

        # The regions whose place a module takes.
        attending: list[Place] = []  # the attentions of their layers
        for site in self.graph.sites():
            acting = bind(self.graph, self.modules, site, "region")
            if not acting:
                continue
            place, (child,) = self.places[site.key], acting  # the graph has refused several
            if place.entry != place.exit:
                raise CompositionError(
                    f"{site.path} is no single module of {type(self.base).__name__}, so that {child.name} "
                    "cannot take its place; use the site 'layer'."
                )
            assert isinstance(child, BoundModule)  # no composition holds such a method
            layer = (place.site.stack, place.site.layer)
            inside = [p for p in self.places.values() if (p.site.stack, p.site.layer) == layer]
            attends = [p for p in inside if p.attends]
            norm = self.places.get(f"{place.site.stack}-{place.site.layer}-attention_norm")
            ahead = norm is not None and bool(attends) and bool(attends[0].site.pre_norm)
            first = self.base.get_submodule(norm.entry) if ahead and norm is not None else None
            narrows = site.name == "layer" and bool(attends) and any(p.site.name == "ffn" for p in inside)
            module = self.base.get_submodule(place.entry)
            forward = RegionForward(module, place, self.token, child, first, narrows=narrows)
            self._handles.append(forward)
            if narrows:
                self._handles += narrowed(self.base, inside, forward.key)
                attending += attends
        self._handles += self.dispatch_to_ours(attending)

        pooler = getattr(self.base, self.layout.family.pooler or "", None)  # reads the first row
        if pooler is not None and any(e.traits.skips_pooler for e in self.graph.entries.values()):
            self._handles.append(FirstRow(pooler, self.token))

        attentions = self.attention_hooks()
        for attention in attentions:
            module = self.base.get_submodule(attention.place.entry)
            # Before the site's own hooks: they read the context that this one lays down.
            self._handles.append(
                module.register_forward_pre_hook(attention.before, with_kwargs=True, prepend=True)
            )
            if attention.prefixes or attention.terms:
                self._handles.append(module.register_forward_hook(attention.after, with_kwargs=True))
        self._handles += self.dispatch_to_ours([a.place for a in attentions if a.prefixes or a.terms])

        # An altered norm in front of an attention has to know its forward when a layer is recomputed.
        stacks = {s.stack for s in self.graph.sites() if s.name == "attention_norm"}
        checkpoints = LayerHooks(self.token)
        layers = (path for s in self.layout.stacks if s.map.name in stacks for path in s.layers)
        for module in {self.base.get_submodule(path) for path in layers}:
            self._handles += [
                module.register_forward_pre_hook(checkpoints.before),
                module.register_forward_hook(checkpoints.after, always_call=True),
            ]

        # In front of each layer from the first one on that a prompt puts rows in front of.
        roots = self.root_hooks()
        for stack, root in zip(self.layout.stacks, roots, strict=True):
            of = stack.map
            below: tuple[BoundModule, ...] = ()
            for index, path in enumerate(stack.layers):
                prompts = tuple(prompt for prompt in root.late if prompt.site.layer == index)
                if below or prompts:
                    late = LateHooks(of.name, self.token, of.causal, of.ones, prompts, below, of.sine_first)
                    module = self.base.get_submodule(path)
                    self._handles.append(
                        module.register_forward_pre_hook(late.before, with_kwargs=True, prepend=True)
                    )
                    here = [p for p in stack.places if p.attends and p.site.layer == index]
                    self._handles += dispatching(self.base.get_submodule(p.entry) for p in here)
                    if any(slot.leaves for prompt in prompts for slot in prompt.slots):
                        self._handles.append(module.register_forward_hook(late.leave))
                    kept = len(self.layout.stacks) > 1 and of.name == "encoder"
                    if index == len(stack.layers) - 1 and not kept:
                        self._handles.append(module.register_forward_hook(late.after))
                below += prompts

        used = {s.stack for s in self.graph.sites()}
        counted = False
        for stack, root in zip(self.layout.stacks, roots, strict=True):
            lengthened = root.source is not None and bool(root.source.reserving)
            if stack.map.name not in used and not lengthened and not root.logits:
                continue
            counted = True
            module = self.base.get_submodule(stack.map.root)
            self._handles.append(module.register_forward_pre_hook(root.before, with_kwargs=True))
            if root.rows and stack.layers:
                bottom = self.base.get_submodule(stack.layers[0])
                self._handles.append(bottom.register_forward_pre_hook(root.reached))
            if (root.rows or root.late) and not root.keep:
                for leaving in (stack.map.leaves, stack.map.root):
                    if leaving is not None:
                        behind = self.base.get_submodule(leaving)
                        self._handles.append(behind.register_forward_hook(root.after, with_kwargs=True))
                if pooler is not None and stack.map.leaves is None:
                    self._handles.append(pooler.register_forward_pre_hook(root.pooled))
            self._handles.append(module.register_forward_hook(root.cleanup, always_call=True))
        if self._weights and not counted:  # what acts on weights alone needs no root
            self._handles.append(self.base.register_forward_pre_hook(self.forwards.before))
            self._handles.append(self.base.register_forward_hook(self.forwards.after, always_call=True))

        on_logits = [self.modules[n] for n, entry in self.graph.entries.items() if "logits" in entry.ways]
        project = projection_of(self.model)
        if on_logits and project is not None:
            behind_all = LogitsHook(on_logits, self.token)
            self._handles.append(self.model.register_forward_pre_hook(behind_all.before, with_kwargs=True))
            self._handles.append(project.register_forward_hook(behind_all.after, with_kwargs=True))

    def refresh(self) -> None:
        """Register the weight hooks anew, and every other hook where modules act at other sites than before
        or fill other rows."""
        if self._acting == self.acting():
            self.refresh_weights()
        else:
            self.remove()
            self.install()

    def acting(self) -> frozenset[tuple[str, str, object]]:
        """Which entries act on which activations and reserved rows now, each with the site's key and the end
        of the site or the rows; a training phase may change it."""
        found: set[tuple[str, str, object]] = set()
        for name, entry in self.graph.entries.items():
            module: Any = self.modules[name]
            for site in entry.sites:
                side = module.side(site) if "hook" in entry.ways else None
                if side is not None:
                    found.add((name, site.key, side))
                slots = tuple(module.slots(site)) if "prompt" in entry.ways else ()
                if slots:
                    found.add((name, site.key, slots))
        return frozenset(found)

    def sites(self) -> tuple[Site, ...]:
        """The sites of the graph at which a module acts now, as `side` and `slots` say."""
        acting = {(name, key) for name, key, _ in self.acting()}
        used = {
            site.key
            for name, entry in self.graph.entries.items()
            for site in entry.sites
            if not entry.ways & {"hook", "prompt"}
            or (name, site.key) in acting
            or has_role(entry, self.modules[name], site, "kv")
            or has_role(entry, self.modules[name], site, "scores")
        }
        return tuple(site for site in self.graph.sites() if site.key in used)

    def remove(self) -> None:
        """Take every hook off. Configs are restored by the hybrid, which keeps them whole."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._remove_weights()
        frames.clear(self.token)

    def _remove_weights(self) -> None:
        for handle in self._weight_handles:
            handle.remove()
        for module, hook in self._weights.items():
            hook.settle(module)
        self._weight_handles, self._weights = [], {}

    # Weights
    # --------------------------------------------------------------------------------------------------

    def refresh_weights(self) -> None:
        """Register the weight hooks anew: which tensors a mask touches is known only after calibration."""
        self.revision += 1
        self._remove_weights()
        owners = owners_of(self.model)
        for name, patch in self.patches().items():
            for module, leaf in owners[id(self.base.get_parameter(name))]:
                self._weights.setdefault(module, WeightHooks(self.token)).patches[leaf] = patch
        for module, hook in self._weights.items():
            self._weight_handles.append(module.register_forward_pre_hook(hook.before, prepend=True))
            self._weight_handles.append(module.register_forward_hook(hook.after, always_call=True))

    def patches(self) -> dict[str, ParameterPatch]:
        """For each altered parameter of the base model, by name, what alters it."""
        found: dict[str, ParameterPatch] = {}
        canonical = self.canonical_names()
        # What is altered by name. Tied tensors have one patch.
        named: dict[str, dict[str, BoundModule]] = {}
        anywhere = self.graph.spec.sites[0]
        for name, entry in self.graph.entries.items():
            module: Any = self.modules[name]
            for target in module.weight_targets() if "weight" in entry.ways else ():
                if target.tensor is not None:
                    leaf = BoundModule(name, module, anywhere, target)
                    named.setdefault(canonical[target.tensor], {})[name] = leaf
        for tensor, leaves in named.items():
            patch = found[tensor] = ParameterPatch()
            for tree in self.graph.trees:
                child = bound(tree, leaves, self.modules, anywhere)
                if child is not None:
                    patch.whole.append((WeightTarget(tensor=tensor), child))
        for site in self.graph.sites():
            children = bind(self.graph, self.modules, site, "weight")
            if children:
                place = self.places[site.key]
                part = Part(place.transposed, place.out_slice)
                patch = found.setdefault(canonical[f"{place.exit}.weight"], ParameterPatch())
                patch.parts.append((WeightTarget(site=site), part, children))
        return found

    def canonical_names(self) -> dict[str, str]:
        """For each name of a parameter of the base model, the first name of its storage, which tied tensors
        share."""
        first = {id(parameter): name for name, parameter in self.base.named_parameters()}
        every = self.base.named_parameters(remove_duplicate=False)
        return {name: first[id(parameter)] for name, parameter in every}

    # Activations
    # ----------------------------------------------------------------------------------------------

    def site_hooks(self) -> dict[str, ModuleHooks]:
        """For each module on whose activations something acts, by its path, the hooks that do so."""
        hooks: dict[str, ModuleHooks] = {}
        for site in self.graph.sites():
            place = self.places[site.key]
            inputs = bind(self.graph, self.modules, place.site, "input")
            outputs = bind(self.graph, self.modules, place.site, "output")
            prompts = self._uncomposed(place.site, "prompt") if place.site.name == "embeddings" else ()
            if not (inputs or outputs or prompts):
                continue
            norm = self.base.get_submodule(place.norm) if place.norm is not None else None
            dispatcher = SiteDispatcher(place, self.token, inputs, outputs, prompts, norm)
            hooks.setdefault(place.entry, ModuleHooks()).entries.append(dispatcher)
            hooks.setdefault(place.exit, ModuleHooks()).exits.append(dispatcher)
            if place.site.pre_norm and place.norm is not None and dispatcher.outputs:
                hooks.setdefault(place.norm, ModuleHooks()).residuals.append(dispatcher)
        # Outer sites first on the way in, inner sites first on the way out.
        for hook in hooks.values():
            hook.entries.sort(key=attrgetter("depth"), reverse=True)
            hook.exits.sort(key=attrgetter("depth"))
        return hooks

    def _uncomposed(self, site: Site, role: Role) -> tuple[BoundModule, ...]:
        """The modules at a site in a role that no composition takes part in.

        Raises:
            CompositionError: a composition does.
        """
        bound = bind(self.graph, self.modules, site, role)
        flat = [b for b in bound if isinstance(b, BoundModule)]
        if len(flat) < len(bound):
            raise CompositionError(
                "Prompts stand side by side and cannot be composed; list each under `model:` by itself."
            )
        return tuple(flat)

    # Attention
    # ------------------------------------------------------------------------------------------------

    def attention_hooks(self) -> list[AttentionHooks]:
        """One for each attention that dispatches, with the prefixes and the terms on scores there.

        Raises:
            CompositionError: there is one at an attention that does not dispatch.
        """
        lost = [
            (name, site.path)
            for name, entry in self.graph.entries.items()
            for site in entry.sites
            if not self.places[site.key].attends
            and any(has_role(entry, self.modules[name], site, role) for role in ("kv", "scores"))
        ]
        if lost:
            name, path = lost[0]
            raise CompositionError(
                f"The attention of {type(self.base).__name__} does not dispatch to a replaceable function, "
                f"so a prefix, or a term on scores, of {name} at {path} would be ignored; use lora, adapters "
                "or prompt_tuning on this family."
            )
        return [
            AttentionHooks(
                place,
                self.token,
                bind(self.graph, self.modules, place.site, "kv"),
                self._uncomposed(place.site, "scores"),
            )
            for place in self.places.values()
            if place.attends
        ]

    def dispatch_to_ours(self, prefixed: list[Place]) -> list[OwnForward]:
        """Let the stacks of these attentions call our functions.

        Returns:
            What takes off again what is on the modules; the configs are restored by the hybrid.

        Raises:
            CompositionError: the model uses an attention implementation that has none of ours.
        """
        stacks = {p.site.stack for p in prefixed if not is_undispatched(self.base.get_submodule(p.entry))}
        for config in configs_of(self.base, [s for s in self.layout.stacks if s.map.name in stacks]):
            now = config._attn_implementation or "eager"
            if now in DELEGATES.values():
                continue  # installed again after it was taken off for a while
            if now not in DELEGATES:
                raise CompositionError(
                    "Prefixes, terms on scores and layers that are computed for some positions work with the "
                    f"attention implementations {', '.join(DELEGATES)}, but the model uses {now!r}; load it "
                    "with attn_implementation='sdpa'."
                )
            config._attn_implementation = {"": DELEGATES[now]}
        return dispatching(self.base.get_submodule(p.entry) for p in prefixed)

    # Prompts and roots
    # ----------------------------------------------------------------------------------------------------

    def root_hooks(self) -> list[RootHooks]:
        """One for each stack of the backbone, in order.

        Raises:
            CompositionError: prompts stand in front of a layer of a stack whose layers do not take rows.
        """
        two = len(self.layout.stacks) > 1
        pad_id = self.layout.padding_id(self.base.config)
        first = ((pad_id or 0) + 1) if self.layout.family.position_offset == "padding" else 0
        hooks: list[RootHooks] = []
        for stack in self.layout.stacks:
            name = stack.map.name
            place = self.places.get(f"{name}-embeddings")
            entries = [e for e in self.graph.entries.values() if any(s.stack == name for s in e.sites)]
            prompts = () if place is None else self._uncomposed(place.site, "prompt")
            bare = {e.name for e in entries if BARE in e.traits.features}
            of_bare = tuple(prompt for prompt in prompts if prompt.name in bare)
            late: tuple[BoundModule, ...] = ()  # what may put rows in front of layers
            for index in range(len(stack.layers)):
                layer = self.places.get(f"{name}-{index}-layer")
                ahead = () if layer is None else self._uncomposed(layer.site, "prompt")
                if ahead:
                    require_room(ahead, stack, index, self.graph.spec)
                late += ahead
            hooks.append(
                RootHooks(
                    stack.map,
                    self.graph.spec,
                    self.token,
                    prompts,
                    () if place is None else tuple(bind(self.graph, self.modules, place.site, "output")),
                    keep=two and name == "encoder",
                    source=next((r for r in hooks if r.keep), None) if name == "decoder" else None,
                    late=late,
                    dummy_id=1 if pad_id == 0 else 0,
                    first_position=first,
                    forwards=self.forwards,
                    answering=self.answering,
                    prepass=bool(bare - {prompt.name for prompt in of_bare}),
                    of_bare=of_bare,
                    sees_text=any(e.traits.sees_text for e in entries),
                    reads_text=self.graph.spec.modality == "text" or name == "decoder",
                    logits=stack is self.layout.stacks[-1]
                    and any("logits" in e.ways for e in self.graph.entries.values()),
                )
            )
        return hooks
