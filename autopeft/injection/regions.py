"""around(region): a module that takes a region's place and runs the frozen region on the rows that it wants.

The region's module gets a forward of its own, which calls our module with x and hands it the region as
`Call.region`. Where our module runs that for some positions of each row alone, what serves each position
by itself (queries, the output projection, the FFN) is computed for these alone and spread out with zeros, and
attention for their queries; keys and values are those of all positions. The narrowing lies inside of the
modules' hooks: what else acts there sees full tensors, as ever.

Which positions a layer is computed for is laid down for each thread, and kept with the checkpoint of a layer
that is recomputed for its gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autopeft.backbones import Place
from autopeft.errors import CompositionError
from autopeft.injection.bind import BoundModule
from autopeft.injection.dispatch import first_input, with_input
from autopeft.injection.frames import READ, RowsKey, frames
from autopeft.injection.positions import spread_first, take
from autopeft.method import Call

__all__ = ["FirstRow", "Narrowed", "RegionForward", "Replacing", "narrowed", "serves_itself"]

_LINEARS = ("q", "o", "cross_q", "cross_o")
_FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps what it checkpoints a layer with


def serves_itself(place: Place) -> bool:
    """Whether a place's output at a position depends on its input at that position alone, its states have
    positions, and it can be had apart from what shares its module (a fused projection also makes keys and
    values, and BLOOM's FFN adds the residual)."""
    if place.site.name == "ffn":
        return not place.flat and not place.exit.startswith(f"{place.entry}.")
    return place.site.name in _LINEARS and place.positions and place.out_slice is None


class Replacing:
    """A forward on one module, in place of the one that it had."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before: Callable[..., Any] | None = module.__dict__.get("forward")
        module.__dict__["forward"] = self

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the module's own forward, by which hooks name its positional arguments."""
        if self._before is not None:
            return inspect.signature(self._before)
        return inspect.signature(type(self.module).forward.__get__(self.module))

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        if self._before is not None:
            return self._before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def remove(self) -> None:
        """Give the module the forward again that it had."""
        self.module.__dict__.pop("forward", None)
        if self._before is not None:
            self.module.__dict__["forward"] = self._before


class FirstRow(Replacing):
    """In the place of a pooler: the first row of what it is given, as it is.

    Args:
        token: the hybrid's.
    """

    def __init__(self, module: nn.Module, token: int) -> None:
        super().__init__(module)
        self.token = token

    def __call__(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.token in frames.bare:
            return self.plain(states, *args, **kwargs)  # type: ignore[no-any-return]
        return states if states.ndim == 2 else states[:, 0]


class Narrowed(Replacing):
    """Computes a module for the positions that its layer is computed for.

    Args:
        key: of the layer.
        enters: whether what serves each position by itself begins here.
        leaves: whether it ends here.
    """

    def __init__(self, module: nn.Module, key: RowsKey, *, enters: bool, leaves: bool) -> None:
        super().__init__(module)
        self.key, self.enters, self.leaves = key, enters, leaves

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows = frames.rows.get(self.key)
        if rows is None:
            return self.plain(*args, **kwargs)
        positions, length = rows
        if self.enters:
            args, kwargs = with_input(args, kwargs, take(first_input(args, kwargs), positions, 1))
        output = self.plain(*args, **kwargs)
        return spread_first(output, positions, length) if self.leaves else output


def _hand_on_rows(
    key: RowsKey, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook on an attention: its function computes the queries of the layer's positions alone."""
    rows = frames.rows.get(key)
    return (args, kwargs) if rows is None else (args, {**kwargs, READ: rows[0]})


def narrowed(base: nn.Module, inside: Iterable[Place], key: RowsKey) -> list[Narrowed | RemovableHandle]:
    """Let the places of a layer compute only the positions that the layer is computed for.

    Returns:
        What takes that off again.
    """
    found: list[Narrowed | RemovableHandle] = []
    for place in inside:
        if serves_itself(place):
            for path in dict.fromkeys((place.entry, place.exit)):
                module = base.get_submodule(path)
                ends = {"enters": path == place.entry, "leaves": path == place.exit}
                found.append(Narrowed(module, key, **ends))
        if place.attends:
            attention = base.get_submodule(place.entry)
            hook = partial(_hand_on_rows, key)
            found.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
    return found


@contextmanager
def _computing(key: RowsKey, rows: tuple[Tensor, int] | None) -> Iterator[None]:
    """Within, the layer is computed for these positions of a sequence of this length, or for all."""
    before = frames.rows.pop(key, None)
    if rows is not None:
        frames.rows[key] = rows
    try:
        yield
    finally:
        frames.rows.pop(key, None)
        if before is not None:
            frames.rows[key] = before


@dataclass
class _Checkpointed:
    """A checkpointing function that lays down the positions of its forward before the layer runs again."""

    function: Callable[..., Any]
    key: RowsKey
    rows: tuple[Tensor, int] | None

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.function(partial(self._run, layer), *args, **kwargs)

    def _run(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _computing(self.key, self.rows):
            return layer(*args, **kwargs)


class RegionForward(Replacing):
    """Asks a module of the hybrid what a region makes of x.

    Args:
        module: the region, a single module of the backbone.
        place: where it is.
        token: the hybrid's.
        child: what takes the region's place.
        norm: the frozen norm in front of the region's first sub-layer, where it has one.
        narrows: whether it can be computed for some positions alone.
    """

    def __init__(
        self,
        module: nn.Module,
        place: Place,
        token: int,
        child: BoundModule,
        norm: nn.Module | None,
        *,
        narrows: bool,
    ) -> None:
        super().__init__(module)
        self.place, self.token, self.child, self.norm, self.narrows = place, token, child, norm, narrows
        self.key: RowsKey = (token, place.site.key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.token in frames.bare:
            return self.plain(*args, **kwargs)
        rest: list[Any] = []

        def region(x: Tensor, rows: Tensor | None = None) -> Tensor:
            if rows is not None and not self.narrows:
                raise CompositionError(
                    f"{self.place.site.path} of {type(self.module).__name__} cannot be computed for some "
                    "positions alone: its attention or its FFN is not known apart; attach what needs that to "
                    "a family with a site map (BERT, RoBERTa, T5's encoder, ViT, …)."
                )
            output = self._run(*with_input(args, kwargs, x), None if rows is None else (rows, x.shape[1]))
            rest[:] = [output]
            y: Tensor = output[0] if isinstance(output, tuple) else output
            return y if rows is None else take(y, rows, 1)

        context = frames.context(self.token, self.place.site.stack)
        y = self.child.around(first_input(args, kwargs), Call(context, norm=self.norm, region=region))
        if not rest:
            raise CompositionError(
                f"{self.child.name} did not run the region at {self.place.site.path}, so that nothing is "
                "known of what the layer returns beside its states."
            )
        return (y, *rest[0][1:]) if isinstance(rest[0], tuple) else y

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: tuple[Tensor, int] | None) -> Any:
        function = self.module.__dict__.get(_FUNCTION)
        kept = function is not None and self.module.training and torch.is_grad_enabled()
        if kept:
            self.module.__dict__[_FUNCTION] = _Checkpointed(function, self.key, rows)  # type: ignore[arg-type]
        try:
            with _computing(self.key, rows):
                return self.plain(*args, **kwargs)
        finally:
            if kept:
                self.module.__dict__[_FUNCTION] = function
