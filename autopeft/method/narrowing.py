"""Modules cut to a smaller size: the leading slices by which a supernet's members share weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autopeft.errors import MethodError
from autopeft.method.contract import MethodConfig, Narrow

__all__ = ["named_so", "narrowed"]


def named_so(name: str, key: str) -> bool:
    """Whether a tensor of a module, by its dotted `key`, is the one of that name, of some site or of the
    module itself, or an entry of the `ParameterList` or `ParameterDict` of that name."""
    own, parts = name.split("."), key.split(".")
    return parts[-len(own) :] == own or parts[:-1][-len(own) :] == own


def narrowed(method: Any, config: MethodConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, cut to those of a module of the same method with a smaller config.

    A tensor keeps its first `config.<field>` entries along each dimension that the method's `narrow` names
    for the field; a `ParameterList` of that name keeps its first ones. Other tensors stay whole. Cut tensors
    are views: a small module that is called with them (`torch.func.functional_call`) hands its gradients to
    the leading slices of the large one.

    Args:
        method: the method as it was configured for the large module.
        config: that of the small module: no field differs but those of `narrow`, which are smaller.
        tensors: `named_parameters()` or `state_dict()` of the large module.

    Returns:
        The tensors by the names that the small module has.

    Raises:
        MethodError: the configs differ in another field, a size grows or falls below 1, or a tensor is not as
            `narrow` says.
    """
    narrow: Narrow = getattr(method, "narrow", None) or {}
    values = {field: (getattr(method.config, field), value) for field, value in config}
    changed = {field: pair for field, pair in values.items() if pair[0] != pair[1]}
    for field, (size, kept) in changed.items():
        if field not in narrow:
            raise MethodError(
                f"A module of {method.name} with {field}={size!r} was to be cut to {field}={kept!r}, but "
                f"{method.name} can be cut by {', '.join(narrow) or 'nothing'}; keep {field} as it is."
            )
        if not isinstance(size, int) or not isinstance(kept, int) or not 1 <= kept <= size:
            raise MethodError(
                f"A module of {method.name} with {field}={size!r} was to be cut to {field}={kept!r}; its "
                f"{field} can become 1 to {size!r}. Without any, leave the entry out of the recipe."
            )
    found = dict(tensors)
    for field, (size, kept) in changed.items():
        cut = 0
        for name, dimensions in narrow[field].items():
            for key in [key for key in found if named_so(name, key)]:
                parts = key.split(".")
                listed = named_so(name, ".".join(parts[:-1]))
                cut += 1
                if listed and parts[-1].isdigit():  # the list itself is the dimension
                    if int(parts[-1]) >= kept:
                        del found[key]
                    continue
                shape = tuple(found[key].shape)
                if any(d >= len(shape) or shape[d] != size for d in dimensions):
                    raise MethodError(
                        f"{method.name} says that {name!r} has {field}={size} along the dimensions "
                        f"{dimensions} (`narrow`), but {key!r} is of shape {shape}."
                    )
                for d in dimensions:
                    found[key] = found[key].narrow(d, 0, kept)
        if not cut:
            raise MethodError(
                f"{method.name} says that {field} cuts {', '.join(narrow[field])} (`narrow`), but there are "
                f"no such tensors, only: {', '.join(list(tensors)[:5])}."
            )
    return found
