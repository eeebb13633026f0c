"""A space's parameters as Optuna's distributions, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autopeft.errors import RecipeError

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["Codec"]


class Codec:
    """Maps a space's parameters to Optuna distributions and back.

    Choices with an order become an index, so that samplers see it; other choices stay categorical.

    Attributes:
        distributions: from which samplers propose, by parameter.
        recorded: of the space's own values, by parameter, as the journal holds them.
        ordered: names of the choices with an order.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = {p.name: p for p in parameters}
        self.distributions: dict[str, BaseDistribution] = {}
        self.recorded: dict[str, BaseDistribution] = {}
        self._indexed: dict[str, tuple[Any, ...]] = {}
        for p in parameters:
            found: BaseDistribution
            if p.kind == "int":
                found = IntDistribution(int(p.low), int(p.high), log=bool(p.log))
            elif p.kind == "float":
                found = FloatDistribution(float(p.low), float(p.high), log=bool(p.log))
            else:
                found = CategoricalDistribution(p.choices)
            self.distributions[p.name] = self.recorded[p.name] = found
            if p.kind == "categorical" and p.ordered:
                self._indexed[p.name] = p.choices
                self.distributions[p.name] = IntDistribution(0, len(p.choices) - 1)
        self.ordered = list(self._indexed)

    def check(self, values: Mapping[str, Any]) -> None:
        """Check that these are values of the space, all of them.

        Raises:
            RecipeError: a name is missing or unknown, or a value does not belong to its parameter.
        """
        if values.keys() != self._parameters.keys():
            raise RecipeError(f"The space has the parameters {', '.join(self._parameters)}.")
        for name, value in values.items():
            self._parameters[name].check(value)

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as the space's values."""
        return {k: self._indexed[k][v] if k in self._indexed else v for k, v in params.items()}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The space's values as Optuna's parameters."""
        return {
            k: self._indexed[k].index(v) if k in self._indexed else v
            for k, v in values.items()
            if k in self.distributions
        }
