"""Puts a graph's modules onto a live model, and takes them off again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from autopeft.backbones import Layout, Place, StackPlaces, projection_of
from autopeft.errors import CompositionError, SiteError
from autopeft.graph import CompositionGraph
from autopeft.injection.attention import DELEGATES, AttentionHooks, configs_of
from autopeft.injection.bind import BoundModule, Role, bind, bind_tensors, plays, side_of
from autopeft.injection.dispatch import ModuleHooks, SiteDispatcher
from autopeft.injection.frames import frames
from autopeft.injection.lanes import LayerHooks
from autopeft.injection.late import LateHooks, require_room
from autopeft.injection.logits import LogitsHook, logits_modules
from autopeft.injection.regions import FirstRow, RegionForward, Replacing, narrowed
from autopeft.injection.sequence import PoolerHooks, RootHooks
from autopeft.injection.threads import Forwards
from autopeft.injection.undispatched import OwnForward, dispatching, is_undispatched
from autopeft.injection.weights import ParameterPatch, Part, WeightHooks, owners_of
from autopeft.method import BARE, Slot, WeightTarget
from autopeft.spec import Site

__all__ = ["Injection"]


class Injection:
    """All hooks of one hybrid on one model.

    Args:
        model: the model, task head included.
        base: its base model; places are relative to it.
        layout: where the sites are.
        graph: what acts where.
        modules: entries' and compositions' modules by name.
        token: the hybrid's number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        base: PreTrainedModel,
        layout: Layout,
        graph: CompositionGraph,
        modules: Mapping[str, nn.Module],
        token: int,
    ) -> None:
        self.model, self.base, self.layout = model, base, layout
        self.graph, self.modules, self.token = graph, modules, token
        self.places: dict[str, Place] = {p.site.key: p for p in layout.places()}
        self._handles: list[RemovableHandle | OwnForward | Replacing | RegionForward] = []
        self._weight_handles: list[RemovableHandle] = []
        self._weights: dict[nn.Module, WeightHooks] = {}
        self._acting: frozenset[tuple[object, ...]] = frozenset()
        self.forwards = Forwards(f"the hybrid {graph.recipe.name!r}")
        self.revision = 0  # rises whenever other tensors may be altered than before

    def install(self) -> None:
        """Register every hook.

        Raises:
            SiteError: the model lacks a site that the graph uses.
            CompositionError: the model's attention does not dispatch, so that prefixes would be ignored.
        """
        self.check_places()
        self._acting = self.acting()
        self.refresh_weights()

        for path, site_hook in self.site_hooks().items():
            module = self.base.get_submodule(path)
            if site_hook.entries or site_hook.residuals:
                self._handles.append(module.register_forward_pre_hook(site_hook.before, with_kwargs=True))
            if site_hook.exits:
                self._handles.append(module.register_forward_hook(site_hook.after, with_kwargs=True))

        attending: list[Place] = []  # attentions of the layers whose place a module takes
        for place, child in self.regions():
            layer = (place.site.stack, place.site.layer)
            inside = [p for p in self.places.values() if (p.site.stack, p.site.layer) == layer]
            attends = [p for p in inside if p.attends]
            norm = self.places.get(f"{place.site.stack}-{place.site.layer}-attention_norm")
            ahead = norm is not None and bool(attends) and bool(attends[0].site.pre_norm)
            first = self.base.get_submodule(norm.entry) if ahead and norm is not None else None
            narrows = bool(attends) and any(p.site.name == "ffn" for p in inside)
            module = self.base.get_submodule(place.entry)
            forward = RegionForward(module, place, self.token, child, first, narrows=narrows)
            self._handles += [forward, *narrowed(self.base, inside, forward.key)]
            attending += attends
        self._handles += self.dispatch_to_ours(attending)

        pooler = self.pooler()
        if pooler is not None and any(e.traits.skips_pooler for e in self.graph.entries.values()):
            self._handles.append(FirstRow(pooler, self.token))

        attentions = self.attention_hooks()
        for attention in attentions:
            module = self.base.get_submodule(attention.place.entry)
            # Before the site's own hooks: they read the context that this one lays down.
            self._handles.append(
                module.register_forward_pre_hook(attention.before, with_kwargs=True, prepend=True)
            )
            if attention.acts:
                self._handles.append(module.register_forward_hook(attention.after, with_kwargs=True))
        self._handles += self.dispatch_to_ours([a.place for a in attentions if a.acts])

        # An altered norm in front of an attention has to know its forward when a layer is recomputed.
        stacks = {s.stack for s in self.graph.sites() if s.name == "attention_norm"}
        checkpoints = LayerHooks(self.token, [self.token])
        layers = (path for s in self.layout.stacks if s.map.name in stacks for path in s.layers)
        for module in {self.base.get_submodule(path) for path in layers}:
            self._handles += [
                module.register_forward_pre_hook(checkpoints.before),
                module.register_forward_hook(checkpoints.after, always_call=True),
            ]

        # In front of each layer from the first one on that a prompt puts rows in front of.
        for stack in self.layout.stacks:
            of = stack.map
            below: tuple[BoundModule, ...] = ()
            for index, path in enumerate(stack.layers):
                prompts = self._late_prompts(stack, index)
                if below or prompts:
                    late = LateHooks(of.name, self.token, of.causal, of.ones, prompts, below, of.sine_first)
                    module = self.base.get_submodule(path)
                    self._handles.append(
                        module.register_forward_pre_hook(late.before, with_kwargs=True, prepend=True)
                    )
                    here = [p for p in stack.places if p.attends and p.site.layer == index]
                    self._handles += dispatching(self.base.get_submodule(p.entry) for p in here)
                    kept = len(self.layout.stacks) > 1 and of.name == "encoder"
                    if index == len(stack.layers) - 1 and not kept:
                        self._handles.append(module.register_forward_hook(late.after))
                below += prompts

        used = {s.stack for s in self.graph.sites()}
        counted = False
        for stack, root in zip(self.layout.stacks, self.root_hooks(), strict=True):
            if stack.map.name not in used and not root.source_slots and not root.logits:
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
                    cutting = PoolerHooks(stack.map.name, self.token)
                    self._handles.append(pooler.register_forward_pre_hook(cutting.before))
            self._handles.append(module.register_forward_hook(root.cleanup, always_call=True))
        if self._weights and not counted:  # what acts on weights alone needs no root
            self._handles.append(self.base.register_forward_pre_hook(self.forwards.before))
            self._handles.append(self.base.register_forward_hook(self.forwards.after, always_call=True))

        on_logits, project = logits_modules(self.graph, self.modules), projection_of(self.model)
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

    def sides(self) -> frozenset[tuple[str, str, str]]:
        """The entries that act on activations now, each with its sites and the ends of them."""
        hooked = [(n, e.sites) for n, e in self.graph.entries.items() if "hook" in e.ways]
        found = (
            (name, site.key, side_of(self.modules[name], site)) for name, sites in hooked for site in sites
        )
        return frozenset((name, key, side) for name, key, side in found if side is not None)

    def filled(self) -> frozenset[tuple[str, str, tuple[Slot, ...]]]:
        """The entries that fill or renew reserved rows now, each with the sites and the rows."""
        modules: Mapping[str, Any] = self.modules
        filling = [(n, e.sites) for n, e in self.graph.entries.items() if "prompt" in e.ways]
        found = (
            (name, site.key, tuple(modules[name].slots(site))) for name, sites in filling for site in sites
        )
        return frozenset((name, key, slots) for name, key, slots in found if slots)

    def acting(self) -> frozenset[tuple[object, ...]]:
        """Which entries act on which activations and reserved rows now; a training phase may change it."""
        return frozenset((*self.sides(), *self.filled()))

    def sites(self) -> tuple[Site, ...]:
        """The sites of the graph at which a module acts now, as `side` and `slots` say."""
        acting = {(name, key) for name, key, _ in (*self.sides(), *self.filled())}
        acting |= {
            (name, site.key)
            for name, entry in self.graph.entries.items()
            for site in entry.sites
            if plays(self.graph, name, self.modules[name], site, "kv", "scores")
        }
        used = {
            site.key
            for name, entry in self.graph.entries.items()
            for site in entry.sites
            if not entry.ways & {"hook", "prompt"} or (name, site.key) in acting
        }
        return tuple(site for site in self.graph.sites() if site.key in used)

    def check_places(self) -> None:
        """Raise SiteError if the model lacks a site that the graph uses."""
        missing = [s.path for s in self.graph.sites() if s.key not in self.places]
        if missing:
            raise SiteError(
                f"{type(self.model).__name__} lacks {', '.join(missing[:5])}; load the whole model, or "
                f"leave these sites out."
            )

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
        self._weights = self.weight_hooks()
        for module, hook in self._weights.items():
            self._weight_handles.append(module.register_forward_pre_hook(hook.before, prepend=True))
            self._weight_handles.append(module.register_forward_hook(hook.after, always_call=True))

    def weight_hooks(self) -> dict[nn.Module, WeightHooks]:
        """For each module whose parameters are altered, the hooks that do so."""
        owners = owners_of(self.model)
        hooks: dict[nn.Module, WeightHooks] = {}
        for name, patch in self.patches().items():
            for module, leaf in owners[id(self.base.get_parameter(name))]:
                hooks.setdefault(module, WeightHooks(self.token)).patches[leaf] = patch
        return hooks

    def patches(self) -> dict[str, ParameterPatch]:
        """For each altered parameter of the base model, by name, what alters it."""
        found: dict[str, ParameterPatch] = {}
        canonical = self._canonical()
        for name, whole in bind_tensors(self.graph, self.modules, canonical).items():
            patch = found.setdefault(name, ParameterPatch())
            patch.whole += [(WeightTarget(tensor=name), child) for child in whole]
        for site in self.graph.sites():
            children = bind(self.graph, self.modules, site, "weight")
            if children:
                place = self.places[site.key]
                part = Part(place.transposed, place.out_slice)
                patch = found.setdefault(canonical(f"{place.exit}.weight"), ParameterPatch())
                patch.parts.append((WeightTarget(site=site), part, children))
        return found

    def canonical_name(self, name: str) -> str:
        """The first name of the parameter's storage: tied tensors have one patch."""
        return self._canonical()(name)

    def _canonical(self) -> Callable[[str], str]:
        first = {id(parameter): name for name, parameter in self.base.named_parameters()}
        return lambda name: first[id(self.base.get_parameter(name))]

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
        for hook in hooks.values():
            hook.sort()
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

    # Regions
    # --------------------------------------------------------------------------------------------------

    def regions(self) -> list[tuple[Place, BoundModule]]:
        """The regions whose place a module of the hybrid takes, each with that module.

        Raises:
            CompositionError: it is no single module of this model.
        """
        found = []
        for site in self.graph.sites():
            bound = bind(self.graph, self.modules, site, "region")
            if not bound:
                continue
            place, (child,) = self.places[site.key], bound  # the graph has refused several
            if place.entry != place.exit:
                raise CompositionError(
                    f"{site.path} is no single module of {type(self.base).__name__}, so that {child.name} "
                    "cannot take its place; use the site 'layer'."
                )
            assert isinstance(child, BoundModule)  # no composition holds such a method
            found.append((place, child))
        return found

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
            if plays(self.graph, name, self.modules[name], site, "kv", "scores")
            and not self.places[site.key].attends
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

    def _late_prompts(self, stack: StackPlaces, index: int) -> tuple[BoundModule, ...]:
        """The prompts in front of a layer.

        Raises:
            CompositionError: the stack's layers do not take rows.
        """
        place = self.places.get(f"{stack.map.name}-{index}-layer")
        prompts = () if place is None else self._uncomposed(place.site, "prompt")
        require_room(prompts, stack, index, self.graph.spec)
        return prompts

    def root_hooks(self) -> list[RootHooks]:
        """One for each stack of the backbone, in order."""
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
            hooks.append(
                RootHooks(
                    stack.map,
                    self.graph.spec,
                    self.token,
                    prompts,
                    () if place is None else tuple(bind(self.graph, self.modules, place.site, "output")),
                    keep=two and name == "encoder",
                    source=next((r for r in hooks if r.keep), None) if name == "decoder" else None,
                    late=tuple(p for i in range(len(stack.layers)) for p in self._late_prompts(stack, i)),
                    dummy_id=1 if pad_id == 0 else 0,
                    first_position=first,
                    forwards=self.forwards,
                    prepass=bool(bare - {prompt.name for prompt in of_bare}),
                    of_bare=of_bare,
                    sees_text=any(e.traits.sees_text for e in entries),
                    logits=stack is self.layout.stacks[-1]
                    and any("logits" in e.ways for e in self.graph.entries.values()),
                )
            )
        return hooks

    def pooler(self) -> nn.Module | None:
        """The module that reads the first row, where this base model has one."""
        pooler = getattr(self.base, self.layout.family.pooler or "", None)
        return pooler if isinstance(pooler, nn.Module) else None
