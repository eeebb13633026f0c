"""Configurations that ask for more than any model has are refused before a model is made of them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from autopeft.errors import UsageError

__all__ = ["MOST_LAYERS", "MOST_PARAMETERS", "bounded_model", "check_layers"]

MOST_LAYERS = 1_000
MOST_PARAMETERS = 10**13
_MOST_TENSORS = 50_000
_LAYERS = re.compile(r"(^|_)(layers?|depths?|blocks)($|_)")


def check_layers(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration with more layers than any model has.

    Args:
        config: as in its file, with those of parts of the model inside.
        where: whose it is, for the message.

    Raises:
        UsageError: it has.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_layers(value, where)
        elif _LAYERS.search(str(key)):
            numbers = [len(value), *value] if isinstance(value, (list, tuple)) else [value]
            most = max((n for n in numbers if isinstance(n, int)), default=0)
            if most > MOST_LAYERS:
                raise UsageError(
                    f"The configuration of {where} has {key}={_number(most)}, but at most {MOST_LAYERS:,} "
                    "layers are taken; is it damaged?"
                )


def _number(value: int) -> str:
    return f"{value:,}" if value < 10**18 else "a number beyond 10^18"


@contextmanager
def bounded_model(where: str) -> Iterator[None]:
    """Whatever model is made inside by this thread has no more parameters than any model has.

    Raises:
        UsageError: it has, or the configuration makes no model.
    """
    thread, found = threading.get_ident(), [0, 0]

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        if threading.get_ident() != thread or parameter is None:
            return
        found[0] += 1
        found[1] += parameter.numel()
        if found[0] > _MOST_TENSORS or found[1] > MOST_PARAMETERS:
            raise UsageError(
                f"The configuration of {where} makes a model of more than {MOST_PARAMETERS:.0e} parameters "
                f"or {_MOST_TENSORS:,} tensors, which are the most that are taken; is it damaged?"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except UsageError:
        raise
    # The classes of models raise whatever their arithmetic does: division by zero, sizes that overflow, …
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(f"The configuration of {where} makes no model: {first}") from error
    finally:
        hook.remove()
