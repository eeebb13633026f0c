"""A second device for the tests, `acc`, on a machine that has none.

What it is: a tensor that says `acc:0` and holds a tensor of the CPU. Each operation computes on the tensors
inside, so its numbers are the CPU's to the last bit. What it shows are the mistakes that a GPU punishes:

- Tensors of two devices do not mix, where they do not on CUDA: there a number (a tensor without dimensions)
  may come from the CPU, and so may the index in `x[i]`, but not that of `gather`, `index_select` or an
  embedding.
- Random numbers on it come from a generator of its own. A generator of the CPU is refused.
- Its tensors are no memory of this process: `numpy()` and `data_ptr()` do not reach them.

What it is not: there is no second processor. It measures neither time nor memory; streams, kernels and their
rounding, autocast (no casts are registered), several cards and pinned memory are tried on CUDA alone.

With this folder on `PYTHONPATH`, `import torch` finds it by its entry point (`torch.backends`) and calls
`on()`: that is how a real backend comes to every process, the workers of a search too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

NAME = "acc"
DEVICE = torch.device("cpu")  # until torch knows the name
COUNT = "ACC_DEVICES"
"""Variable of the environment: how many of it there are, one by default."""

# Where an operation takes an index, which may lie on the CPU; and where not even a number may.
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPYING = {"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize"}
_STRICT = {
    *(
        "aten::gather",
        "aten::index_select",
        "aten::embedding",
        "aten::embedding_dense_backward",
        "aten::take",
    ),
    *("aten::scatter", "aten::scatter_", "aten::scatter_add", "aten::scatter_add_", "aten::scatter_reduce"),
    *("aten::index_add", "aten::index_add_", "aten::index_copy", "aten::index_copy_", "aten::cat"),
    *("aten::index_fill", "aten::index_fill_", "aten::nll_loss_forward", "aten::mm", "aten::bmm"),
}


_PYTHON = torch._C.DispatchKeySet(torch._C.DispatchKey.Python) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.PythonTLSSnapshot
)


class AccTensor(Tensor):
    """A tensor of the second device: `inner` is the CPU's."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> AccTensor:
        if _LIMIT is not None and inner.numel() > _LIMIT[0]:
            _LIMIT[1].append(inner.numel())
            raise torch.OutOfMemoryError(f"{NAME} out of memory: no room for {inner.numel():,} numbers")
        made: AccTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"acc({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:  # torch would copy a storage, and there is none
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        found: Tensor = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def limit(numbers: int | None) -> list[int]:
    """Let no tensor have more numbers than so many, as on a card without room for it; `None` lets all.

    Returns:
        a list that grows by the size of each tensor that there was no room for.
    """
    global _LIMIT
    refused: list[int] = []
    _LIMIT = None if numbers is None else (numbers, refused)
    return refused


_LIMIT: tuple[int, list[int]] | None = None


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """What the function makes of each value in the arguments or results of an operation: lists, tuples and
    dictionaries are all that these are made of, so that torch's `tree_map` would take three times as long."""
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(function, inner) for inner in value])
    if isinstance(value, dict):
        return {key: _mapped(function, inner) for key, inner in value.items()}
    return function(value)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors among them."""
    found: list[Tensor] = []
    _mapped(lambda inner: found.append(inner) if isinstance(inner, Tensor) else None, value)
    return found


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, AccTensor) else value


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation on the tensors inside."""
    name, target = func._schema.name, kwargs.get("device")
    tensors = _tensors((args, kwargs))
    _check_devices(name, args, tensors)
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    given = _mapped(_inner, tuple(args)), _mapped(_inner, kwargs)
    if torch.Tag.nondeterministic_seeded in func.tags:
        found = _drawn(func, *given)
    elif name == "aten::histc" and not given[0][0].is_floating_point():
        # CUDA counts whole numbers, which the CPU does not.
        found = func(given[0][0].double(), *given[0][1:], **given[1]).to(given[0][0].dtype)
    else:
        found = func(*given[0], **given[1])
    if target is not None and torch.device(target).type != NAME:
        return found
    # What an operation changes in place stays the tensor that it was.
    known = {id(_inner(tensor)): tensor for tensor in tensors}
    for tensor in tensors:
        if isinstance(tensor, AccTensor) and tensor.shape != tensor.inner.shape:
            with torch._C._ExcludeDispatchKeyGuard(_PYTHON):  # in place, of the outer one alone
                torch.ops.aten.as_strided_(tensor, tensor.inner.shape, tensor.inner.stride())

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else AccTensor(value)

    return _mapped(outer, found)


def _check_devices(name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Refuse what CUDA refuses."""
    if name in _COPYING:
        return
    indices = {id(t) for t in _tensors(args[1])} if name in _INDEXING else set()
    for tensor in tensors:
        number = tensor.dim() == 0 and name not in _STRICT
        if not (isinstance(tensor, AccTensor) or number or id(tensor) in indices):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {tensor.device}! (in {name}, of shape {tuple(tensor.shape)})"
            )


# Random numbers
# --------------------------------------------------------------------------------------------------------


class AccGenerator(torch.Generator):
    """A generator of the second device."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        _GENERATORS.add(self)


_GENERATORS: WeakSet[AccGenerator] = WeakSet()
_DEFAULT = AccGenerator()
_Plain = torch.Generator


def _is_ours(generator: torch.Generator) -> bool:
    """Whether it is one of the second device: torch hands operations another object for the same generator,
    so one that is seeded is seen in the other."""
    for ours in tuple(_GENERATORS):
        before = ours.get_state()
        ours.manual_seed(_PROBE)
        same = generator.initial_seed() == _PROBE
        ours.set_state(before)
        if same:
            return True
    return False


_PROBE = 20_260_131


class _OfInstances(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Plain)


class _Generator(metaclass=_OfInstances):
    """`torch.Generator`, which knows the second device as well: torch itself makes generators in C++."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return AccGenerator() if torch.device(device).type == NAME else _Plain(device)


def _drawn(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation that draws, from the device's generator or the one that it is given."""
    own = next((a for a in (*args, *kwargs.values()) if isinstance(a, _Plain)), _DEFAULT)
    if not _is_ours(own):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{own.device}'")
    before = torch.get_rng_state()
    torch.set_rng_state(own.get_state())
    try:
        plain = _mapped(lambda a: None if isinstance(a, _Plain) else a, (args, kwargs))
        return func(*plain[0], **plain[1])
    finally:
        own.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


# Declaring it
# --------------------------------------------------------------------------------------------------------


class _Module:
    """What torch has under `torch.acc`: neither `synchronize` nor a measure of memory."""

    active = False

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return self.active

    def device_count(self) -> int:
        """Those of the environment; a worker of a search sees those that Ray gave it."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        given = (
            int(os.environ.get(COUNT, 1)) if visible is None else len([n for n in visible.split(",") if n])
        )
        return given if self.active else 0

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Asked for where activations are computed anew; casts are registered for none of them."""
        return [torch.bfloat16, torch.float16]

    def get_device_name(self, device: Any = None) -> str:
        return "a second device for tests"

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        _DEFAULT.manual_seed(seed)

    manual_seed = manual_seed_all

    def get_rng_state(self, device: Any = None) -> Tensor:
        return _DEFAULT.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        _DEFAULT.set_state(state)


_MODULE = _Module()
_LIBRARIES: list[torch.library.Library] = []


def why_not() -> str | None:
    """Why torch cannot have it; `None` where it can."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} lets Python declare no device (2.10 and later do)"
    return None


def on() -> None:
    """Make it the accelerator of this process."""
    _declare()
    _MODULE.active = True


def off() -> None:
    """Let torch find no accelerator, as before `on()`."""
    _MODULE.active = False


def _declare() -> None:
    global DEVICE
    if _LIBRARIES:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up

    class Hook(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined, misc]
        def is_available(self) -> bool:
            return _MODULE.active

        def has_primary_context(self, dev_id: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    set_up(NAME, backend_module=_MODULE, hook=Hook())
    DEVICE = torch.device(NAME, 0)
    # Modules keep their parameters where they move, as on CUDA, and with them what two modules share.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Generator = _Generator  # type: ignore[assignment, misc]
    library = torch.library.Library("aten", "IMPL")
    _LIBRARIES.append(library)
    for name, op in _makers():
        library.impl(name, _maker(op), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")


def _makers() -> list[tuple[str, Any]]:
    """Operations that make tensors of nothing: no tensor among their arguments says that they are ours."""
    found = []
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        packet = getattr(torch.ops.aten, name, None) if full.startswith("aten::") else None
        op = getattr(packet, overload or "default", None)
        if op is None or torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd"):
            continue
        taken = op._schema.arguments
        makes = [str(r.type) for r in op._schema.returns] == ["Tensor"]
        if (
            makes
            and any(a.name == "device" for a in taken)
            and not any("Tensor" in str(a.type) for a in taken)
        ):
            found.append((full.removeprefix("aten::"), op))
    return found


def _maker(op: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> AccTensor:
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"} | {"device": torch.device("cpu")}
        draws = torch.Tag.nondeterministic_seeded in op.tags
        return AccTensor(_drawn(op, args, kwargs) if draws else op(*args, **kwargs))

    return made


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """How `torch.tensor(…, device=…)` fills what it made."""
    _inner(target).copy_(_inner(source))
    return target
