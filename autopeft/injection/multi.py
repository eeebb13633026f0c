"""Installs several hybrids on one model, each on its own rows of every batch (see `lanes`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle

from autopeft.backbones import Place
from autopeft.errors import CompositionError
from autopeft.injection.frames import frames
from autopeft.injection.install import Injection
from autopeft.injection.lanes import (
    BiasHooks,
    LaneAttentionHooks,
    LaneHooks,
    LayerHooks,
    ModelHooks,
    MultiRootHooks,
    StackBias,
)
from autopeft.injection.threads import Forwards
from autopeft.injection.undispatched import OwnForward
from autopeft.injection.weights import Replacement, WeightHooks, owners_of

__all__ = ["LaneInjection", "MultiInjection"]

_TABLE = "relative_attention_bias"  # looked up by (queries, keys), which knows of no batch


class LaneInjection(Injection):
    """One of several hybrids' part: it says what acts where, `MultiInjection` installs it."""

    host: MultiInjection

    def refresh_weights(self) -> None:
        """Register the weight hooks of all hybrids anew."""
        self.host.refresh_weights()

    def refresh(self) -> None:
        """Register the hooks of all hybrids anew, also where they act at other sites than before."""
        self.host.refresh()


class MultiInjection:
    """All hooks of several hybrids on one model.

    Args:
        lanes: each hybrid's injection, none of them installed.
        heads: for each hybrid, its own parameter in place of a parameter of the task head, by the latter's
            name in the model.
        token: a number of its own.
    """

    def __init__(
        self, lanes: Sequence[LaneInjection], heads: Sequence[Mapping[str, nn.Parameter]], token: int
    ) -> None:
        self.lanes, self.heads, self.token = tuple(lanes), tuple(heads), token
        first = self.lanes[0]
        self.model, self.base, self.layout = first.model, first.base, first.layout
        self._handles: list[RemovableHandle | OwnForward] = []
        self._lane_handles: list[RemovableHandle | StackBias] = []
        self._sites: dict[nn.Module, LaneHooks] = {}
        names = ", ".join(repr(lane.graph.recipe.name) for lane in self.lanes)
        self.forwards = Forwards(f"the hybrids {names}")
        self._tables = {m for name, m in self.base.named_modules() if name.endswith(_TABLE)}
        for lane in self.lanes:
            lane.host = self

    def install(self) -> None:
        """Register every hook; raises what `Injection.install` raises."""
        for lane in self.lanes:
            self._require_rows(lane)
        alone = any(lane.patches() for lane in self.lanes)
        model = ModelHooks(self.token, len(self.lanes), self.forwards, alone)
        self._handles.append(self.model.register_forward_pre_hook(model.before, with_kwargs=True))

        prefixed: list[Place] = []
        for attentions in zip(*(lane.attention_hooks() for lane in self.lanes), strict=True):
            if not any(attention.prefixes or attention.terms for attention in attentions):
                continue
            prefixed.append(attentions[0].place)
            module = self.base.get_submodule(attentions[0].place.entry)
            of_lanes = LaneAttentionHooks(self.token, attentions)
            self._handles += [
                module.register_forward_pre_hook(of_lanes.before, with_kwargs=True, prepend=True),
                module.register_forward_hook(of_lanes.after, with_kwargs=True),
            ]
        self._handles += self.lanes[0].dispatch_to_ours(prefixed)

        checkpoints = LayerHooks(self.token, tuple(lane.token for lane in self.lanes))
        for module in {self.base.get_submodule(path) for s in self.layout.stacks for path in s.layers}:
            self._handles += [
                module.register_forward_pre_hook(checkpoints.before),
                module.register_forward_hook(checkpoints.after, always_call=True),
            ]

        pooler = self.lanes[0].pooler
        for stack, roots in zip(
            self.layout.stacks, zip(*(lane.root_hooks() for lane in self.lanes), strict=True), strict=True
        ):
            if stack.map.leaves is not None and any(root.rows for root in roots):
                raise CompositionError(
                    f"{type(self.base).__name__} reads a row of its last states itself, which would be one "
                    "of a prompt in a batch of several hybrids; attach those with prompts one at a time."
                )
            shared = MultiRootHooks(self.token, roots)
            module = self.base.get_submodule(stack.map.root)
            self._handles += [
                module.register_forward_pre_hook(shared.before, with_kwargs=True),
                module.register_forward_hook(shared.after, with_kwargs=True),
                module.register_forward_hook(shared.cleanup, always_call=True),
            ]
            if pooler is not None and not shared.keep:
                self._handles.append(pooler.register_forward_pre_hook(shared.pooled))

        # Last: where the model has no head it is a root too, whose hooks read the split.
        self._handles.append(self.model.register_forward_hook(model.after, always_call=True))
        self._sites = self._site_hooks()
        self.refresh_weights()

    def _require_rows(self, lane: LaneInjection) -> None:
        """Raise CompositionError where a hybrid alters a map that is called for more than rows of the batch,
        or for what does not tell them apart."""
        acting, patched = {site.key for site in lane.graph.sites()}, tuple(lane.patches())
        # What sees (batch · positions, width): the modules of flat regions (OPT's FFN), and the norm that a
        # pre-norm one begins with.
        modules: set[str] = set()
        for region in lane.places.values():
            if region.flat:
                modules |= {region.entry, region.exit}
                modules |= {region.norm} if region.site.pre_norm and region.norm is not None else set()
        flat = {p.site.key: p.site for p in lane.places.values() if modules & {p.entry, p.exit}}
        for place in lane.places.values():
            altered = any(name.startswith(f"{place.exit}.") for name in patched)
            if not altered and place.site.key not in acting:
                continue
            if place.site.key in flat:
                names = ", ".join(dict.fromkeys(site.name for site in flat.values()))
                raise CompositionError(
                    f"{place.site.path} of {lane.graph.spec.family!r} sees the positions of all rows as one "
                    "list, (batch · positions, width), so that several hybrids cannot each alter it for "
                    f"their own rows; attach them one at a time, or leave the sites {names} out."
                )
            if not place.positions:
                raise CompositionError(
                    f"{place.site.path} of {lane.graph.spec.family!r} projects relative positions too, which "
                    "belong to no row of the batch, so that several hybrids cannot each alter it; attach "
                    "them one at a time, or leave the sites q and k out."
                )

    def remove(self) -> None:
        """Take every hook off."""
        for handle in (*self._handles, *self._lane_handles):
            handle.remove()
        self._handles, self._lane_handles = [], []
        for token in (self.token, *(lane.token for lane in self.lanes)):
            frames.clear(token)

    # Modules
    # --------------------------------------------------------------------------------------------------

    def _site_hooks(self) -> dict[nn.Module, LaneHooks]:
        hooks: dict[nn.Module, LaneHooks] = {}
        for i, lane in enumerate(self.lanes):
            for path, hook in lane.site_hooks().items():
                self._at(hooks, self.base.get_submodule(path)).lanes[i].sites = hook
        return hooks

    def _at(self, hooks: dict[nn.Module, LaneHooks], module: nn.Module) -> LaneHooks:
        if module not in hooks:
            hooks[module] = LaneHooks(self.token, len(self.lanes), rowless=module in self._tables)
        return hooks[module]

    def refresh(self) -> None:
        """Register the hooks of modules anew, at the sites where something acts now."""
        self._sites = self._site_hooks()
        self.refresh_weights()

    def refresh_weights(self) -> None:
        """Register the hooks of modules anew: which tensors a mask touches is known only after
        calibration."""
        for handle in self._lane_handles:
            handle.remove()
        self._lane_handles = []
        hooks = dict(self._sites)
        for hook in hooks.values():
            for lane in hook.lanes:
                lane.weights = None
        for i, injection in enumerate(self.lanes):
            weights = injection.weight_hooks()
            for module, leaf, parameter in self._head(i):
                weights.setdefault(module, WeightHooks()).patches[leaf] = Replacement(parameter)
            for module, weight in weights.items():
                self._at(hooks, module).lanes[i].weights = weight
        self._lift_biases(hooks)
        for module, hooked in hooks.items():
            if hooked.enters:
                self._lane_handles.append(module.register_forward_pre_hook(hooked.before, with_kwargs=True))
            if hooked.leaves:
                self._lane_handles.append(module.register_forward_hook(hooked.after, with_kwargs=True))

    def _head(self, index: int) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """The places of a hybrid's head in the model: module, name there, and the hybrid's own parameter."""
        owners, own = owners_of(self.model), dict(self.model.named_parameters())
        return [
            (module, leaf, parameter)
            for name, parameter in self.heads[index].items()
            for module, leaf in owners[id(own[name])]
        ]

    @contextmanager
    def head_of(self, index: int) -> Iterator[None]:
        """Within, the model has a hybrid's head for its own, for all rows; no hooks may be installed."""
        places = self._head(index)
        before = [module._parameters[leaf] for module, leaf, _ in places]
        try:
            for module, leaf, parameter in places:
                module._parameters[leaf] = parameter
            yield
        finally:
            for (module, leaf, _), own in zip(places, before, strict=True):
                module._parameters[leaf] = own

    def _lift_biases(self, hooks: dict[nn.Module, LaneHooks]) -> None:
        """Move deltas of a table of relative positions to what reads it: T5's attention, MPNet's stack."""
        for module in self.base.modules():
            if not (BiasHooks.fits(module) or StackBias.fits(module)):
                continue
            hooked = hooks.pop(module.get_submodule(_TABLE), None)
            if hooked is None:
                continue
            weights = [lane.weights for lane in hooked.lanes]
            if StackBias.fits(module):
                self._lane_handles.append(StackBias(self.token, module, weights))
            else:
                bias = BiasHooks(self.token, weights)
                self._lane_handles.append(module.register_forward_pre_hook(bias.before, with_kwargs=True))
