"""Devices: which there are, and what torch offers on each of them.

A device is named as torch names it: `cpu`, `cuda:1`, `xpu`, `mps`, or the backend of another package. The
package asks here for all that depends on the kind of device. What a backend does not offer, such as a measure
of its memory, is left out, or `None` is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from autopeft.errors import UsageError, near

__all__ = [
    "AUTO",
    "RandomState",
    "accelerator",
    "count",
    "device_named",
    "empty_cache",
    "full_precision",
    "generator",
    "generator_state",
    "generators_kept",
    "held_memory",
    "label",
    "peak_memory",
    "reset_peak_memory",
    "restore_generator",
    "synchronize",
]

AUTO = "auto"
RandomState = tuple[Tensor, Tensor | None]
"""State of torch's global generator, and of a device's own where it has one."""

# Which there are
# --------------------------------------------------------------------------------------------------------


def accelerator() -> torch.device | None:
    """The kind of accelerator that torch finds here.

    Apple's `mps` does not compute in float64 and was never tried: it is used where it is named, and not found
    here.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None or found.type == "mps" else found


def count() -> int:
    """How many accelerators this process sees."""
    return 0 if accelerator() is None else torch.accelerator.device_count()


def device_named(name: str) -> torch.device:
    """The device of a name; `auto` is the accelerator where there is one, and else the CPU.

    Raises:
        UsageError: torch does not know the name, or there is no such device here.
    """
    if name == AUTO:
        return accelerator() or torch.device("cpu")
    here = torch.accelerator.current_accelerator(check_available=True)
    there_is = ", ".join(["cpu"] if here is None else ["cpu", here.type])
    try:
        device = torch.device(name)
        module = torch.get_device_module(device.type)
    except RuntimeError as error:
        raise UsageError(
            f"torch knows no device {name!r} to compute on.{near(name.split(':')[0], _NAMES)} Here there is "
            f"{there_is}, or 'auto'. A package that declares a device names itself in the entry-point group "
            "`torch.backends`, which `import torch` reads."
        ) from error
    if device.type != "cpu" and not (module.is_available() and (device.index or 0) < module.device_count()):
        raise UsageError(f"There is no device {name!r} here; there is {there_is}, or take 'auto'.")
    return device


_NAMES = ("auto", "cpu", "cuda", "mps", "xpu")


def label(device: torch.device) -> str:
    """What a person calls the device: the name of the card where torch tells it."""
    name = _function(device, "get_device_name")
    return str(device) if name is None else str(name(device))


def _function(device: torch.device, name: str) -> Callable[..., Any] | None:
    """What torch has under this name for this kind of device."""
    return getattr(torch.get_device_module(device.type), name, None)


# Time and memory
# --------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "mps":
        torch.mps.synchronize()  # which takes no device
    elif (wait := _function(device, "synchronize")) is not None:
        wait(device)


def reset_peak_memory(device: torch.device) -> bool:
    """Let the peak begin now; whether the device measures one."""
    reset = _function(device, "reset_peak_memory_stats")
    if reset is not None:
        reset(device)
    return reset is not None


def peak_memory(device: torch.device) -> int | None:
    """Bytes that tensors held on the device at most; `None` where it does not measure that."""
    peak = _function(device, "max_memory_allocated")
    return None if peak is None else int(peak(device))


def held_memory(device: torch.device) -> int | None:
    """Bytes that tensors hold on the device now; `None` where it does not measure that."""
    held = _function(device, "memory_allocated")
    return None if held is None else int(held(device))


def empty_cache(device: torch.device | None = None) -> None:
    """Give memory that is kept for later tensors back to the device; without one, to the accelerator."""
    device = device or accelerator()
    if device is not None and (empty := _function(device, "empty_cache")) is not None:
        empty()


# Random numbers
# --------------------------------------------------------------------------------------------------------


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator of the device that starts from `seed`.

    A backend written in Python cannot have one (torch makes them in C++): its operations get one of the CPU.
    """
    try:
        made = torch.Generator(device)
    except NotImplementedError:
        made = torch.Generator()
    return made.manual_seed(seed)


def generator_state(device: torch.device) -> RandomState:
    """State of the global generators, the CPU's and the device's, to draw the same numbers again."""
    state = None if device.type == "cpu" else _function(device, "get_rng_state")
    if state is None:
        return torch.get_rng_state(), None
    return torch.get_rng_state(), state() if device.type == "mps" else state(device)


def restore_generator(state: RandomState, device: torch.device) -> None:
    """Back to a state that `generator_state` returned."""
    cpu, own = state
    torch.set_rng_state(cpu)
    restore = _function(device, "set_rng_state")
    if own is not None and restore is not None:
        restore(own) if device.type == "mps" else restore(own, device)


@contextmanager
def generators_kept(device: torch.device, *, seed: int | None = None) -> Iterator[None]:
    """The global generators (CPU and the device's) are put back on leaving; within they start from `seed`, or
    go on from where they are."""
    state = generator_state(device)
    try:
        if seed is not None:
            torch.manual_seed(seed)
        yield
    finally:
        restore_generator(state, device)


# Precision
# --------------------------------------------------------------------------------------------------------


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Within, autocast does not act on this kind of device."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
