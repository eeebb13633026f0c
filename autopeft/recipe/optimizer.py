"""A recipe's optimizer as frozen, strict data: `training: {optimizer: {name: sgd, momentum: 0.9}}`.

| name | class | decay towards zero |
|---|---|---|
| `adamw` | `torch.optim.AdamW` | decoupled: p ← p − lr·λ·p |
| `adam` | `torch.optim.Adam` | in the gradient: g ← g + λ·p |
| `sgd` | `torch.optim.SGD` | in the gradient: g ← g + λ·p |
| `adafactor` | `transformers.optimization.Adafactor` | decoupled |

λ is the group's weight decay. Decay towards another value than zero is decoupled under all of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from autopeft.recipe.models import Part

__all__ = [
    "DEFAULT_OPTIMIZER",
    "OPTIMIZERS",
    "SGD",
    "Adafactor",
    "Adam",
    "AdamW",
    "Optimizer",
]

_Beta = Annotated[float, Field(ge=0, lt=1)]


class _Optimizer(Part):
    """The option that all of them take.

    Attributes:
        clip: whose norm `max_grad_norm` limits: that of all gradients together (`all`), or of each optimizer
            group for itself (`group`): an entry, a part with a group of its own, the head.
    """

    name: str
    clip: Literal["all", "group"] = "all"

    def to_data(self) -> dict[str, Any]:
        """The values that are not defaults, as they are written in a file; `adamw` needs no name."""
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
        return data if self.name == "adamw" else {"name": self.name, **data}


class _WithMoments(_Optimizer):
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0, le=1)

    @field_validator("betas", mode="before")
    @classmethod
    def _of_a_file(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class AdamW(_WithMoments):
    """Loshchilov & Hutter 2019, arXiv:1711.05101: `betas` (β₁, β₂) and `epsilon` ε."""

    name: Literal["adamw"] = "adamw"


class Adam(_WithMoments):
    """Kingma & Ba 2015, arXiv:1412.6980: `betas` (β₁, β₂) and `epsilon` ε."""

    name: Literal["adam"] = "adam"


class SGD(_Optimizer):
    """Gradient descent, by default without `momentum`."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _needs_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adafactor(_Optimizer):
    """Shazeer & Stern 2018, arXiv:1804.04235, at the recipe's own learning rate.

    Attributes:
        decay_rate: c of β₂ = 1 − tᶜ at step t.
        scale_parameter: multiply the learning rate by max(1e-3, RMS of the parameter). Off by default: a
            factor that starts at zero, as LoRA's B does, would hardly move.
        update_threshold: d, the RMS that an update is cut to.
    """

    name: Literal["adafactor"] = "adafactor"
    decay_rate: float = Field(default=-0.8, ge=-1, lt=0)
    scale_parameter: bool = False
    update_threshold: float = Field(default=1.0, gt=0)


Optimizer = AdamW | Adam | SGD | Adafactor
OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD, "adafactor": Adafactor}
DEFAULT_OPTIMIZER = AdamW()
