"""How deep the untouched part of a backbone reaches: the layers below everything that a hybrid alters."""

from __future__ import annotations

from autopeft.injection.install import Injection
from autopeft.spec import StackName

__all__ = ["trunk_depths"]


def trunk_depths(injection: Injection) -> dict[StackName, int]:
    """For each stack, how many of its first layers compute what the bare backbone computes.

    Derived from what is attached: from the sites at which modules act and from the tensors that weight
    methods alter (after calibration only those that a mask has chosen). Prompts, embeddings and tensors of
    unknown place make the depth 0; a prefix at layer l makes it l; poolers and final norms come after all
    layers. A decoder that reads an encoder has a depth only if nothing in the encoder is altered.
    """
    # The states behind one run of a layer that runs again are not those behind its last.
    depths: dict[StackName, int] = {
        s.map.name: len(s.layers) if s.runs == 1 else 0 for s in injection.layout.stacks
    }
    sites = injection.sites()
    for site in sites:
        depths[site.stack] = min(depths[site.stack], site.layer or 0)
    untouched = {s.map.name for s in injection.layout.stacks} - {s.stack for s in sites}
    tensors = {t.name: t for t in injection.graph.spec.tensors}
    # What stands behind the layers, by its path, with the stacks whose output it alters.
    behind: dict[str, set[StackName]] = {
        s.map.norm: {s.map.name} for s in injection.layout.stacks if s.map.norm is not None
    }
    if injection.layout.family.pooler is not None:
        behind[injection.layout.family.pooler] = set()
    for name in injection.patches():
        tensor = tensors.get(name)
        if tensor is not None and tensor.stack is not None and tensor.layer is not None:
            depths[tensor.stack] = min(depths[tensor.stack], tensor.layer)
            untouched.discard(tensor.stack)
            continue
        stacks = next((s for path, s in behind.items() if name.startswith(f"{path}.")), None)
        if stacks is None:  # it may stand anywhere
            return dict.fromkeys(depths, 0)
        untouched -= stacks
    if len(depths) > 1 and "encoder" not in untouched:
        depths["decoder"] = 0
    return depths
