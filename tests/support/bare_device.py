"""A device as a stranger declares one, `xyz`: tensors that compute on the CPU, a name, and nothing more.

It has no generator and no measures, and leaves torch's switches as they are. Run in a folder with a backbone
(`model`) and reviews (`rows.csv`), it trains each recipe that it is given, as JSON, on the CPU and on itself,
and prints the losses and an answer of each training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "xyz"
MIXES = {
    *("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"),
    *("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"),
}


class BareTensor(Tensor):
    """Says `xyz:0` and holds a tensor of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> BareTensor:
        made: BareTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, name = dict(kwargs or {}), func._schema.name
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if name not in MIXES and tensor.dim() > 0 and not isinstance(tensor, BareTensor):
                raise RuntimeError(f"{name} got tensors of {NAME}:0 and of {tensor.device}")
        target = given.get("device")
        if target is not None:
            given["device"] = torch.device("cpu")
        found = func(*tree_map(inner, tuple(args)), **tree_map(inner, given))
        if name == "aten::copy_":
            return args[0]
        if target is not None and torch.device(target).type != NAME:
            return found
        known = {id(inner(tensor)): tensor for tensor in tensors}  # what is changed in place stays itself

        def outer(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return known[id(value)] if id(value) in known else BareTensor(value)

        return tree_map(outer, found)


def inner(value: Any) -> Any:
    return value.inner if isinstance(value, BareTensor) else value


def declare() -> torch.library.Library:
    """Let torch know the device; it does as long as the library lives."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        op = getattr(getattr(torch.ops.aten, name, None), overload or "default", None)
        implicit = torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd")
        if not full.startswith("aten::") or op is None or implicit:
            continue
        arguments, returns = op._schema.arguments, [str(r.type) for r in op._schema.returns]
        of_nothing = not any("Tensor" in str(a.type) for a in arguments)
        if of_nothing and returns == ["Tensor"] and any(a.name == "device" for a in arguments):
            library.impl(full.removeprefix("aten::"), _maker(op), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    return library


def _maker(op: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> BareTensor:
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        return BareTensor(op(*args, **kwargs | {"device": torch.device("cpu")}))

    return made


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    inner(target).copy_(inner(source))
    return target


def train(recipe: dict[str, Any], device: str) -> Any:
    """Losses of a training on the device, and what is then said of a text."""
    import autopeft

    trained = autopeft.train(
        task="rows.csv", text="body", label="verdict", model="model", steps=6, batch_size=8, max_length=24,
        recipe=autopeft.Recipe.from_dict(recipe), device=device, out=f"{recipe['name']}-{device}",
    )  # fmt: skip
    (answer,) = autopeft.predict(trained, ["a good film"])
    return [loss for _, loss in trained.history.losses], answer["label"], str(trained.hybrid.model.device)


if __name__ == "__main__":
    library = declare()
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused kernels are the CPU's alone
        found = [
            [train(recipe, device) for device in ("cpu", NAME)] for recipe in map(json.loads, sys.argv[1:])
        ]
    print(json.dumps(found))
