"""Samplers by name, open to other packages through the entry-point group `autopeft.samplers`.

```python
@register("mine")
def mine(context: SamplerContext) -> BaseSampler:
    return MySampler(seed=context.seed)
```
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from autopeft.errors import UsageError
from autopeft.plugins import Registry
from autopeft.search.optimization.sampler_view import Repair
from autopeft.search.optimization.samplers.linear import LinearSampler

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["SAMPLERS", "SamplerContext", "default_sampler", "make_sampler", "register"]


@dataclass(frozen=True)
class SamplerContext:
    """What a sampler is made from.

    Attributes:
        seed: of everything that the sampler draws.
        trials: planned number of trials.
        startup: trials to draw at random before a model is asked.
        objectives: 1 for the score alone, 2 for score and cost (see `Point`).
        repair: maps Optuna's parameters of a suggestion to the repaired point, `None` where there is none.
        parameters: of the space.
    """

    seed: int
    trials: int
    startup: int
    objectives: int
    repair: Repair
    parameters: Sequence[Parameter]


Maker = Callable[[SamplerContext], BaseSampler]
SAMPLERS: Registry[Maker] = Registry(
    error=UsageError,
    malformed="A sampler's name is a lower-case identifier, but got {name!r}.",
    taken="The sampler name {name!r} is taken by {by}.",
    unknown="There is no sampler {name!r}.{near} Samplers: {in_order}; one from another package registers "
    "through the entry-point group 'autopeft.samplers'.",
    group="autopeft.samplers",
)
_M = TypeVar("_M", bound=Maker)


def register(name: str) -> Callable[[_M], _M]:
    """Decorator of a function, or of a class, that makes a sampler of Optuna's kind from a `SamplerContext`.

    The study is built anew for every suggestion, of finished, running and failed trials alike, and a resumed
    search makes its sampler anew: a sampler keeps no state that it could not read from the trials.

    Raises:
        UsageError: the name is taken or malformed, or it does not take one argument.
    """

    def enter(maker: _M) -> _M:
        SAMPLERS.check_name(name, maker)
        try:
            inspect.signature(maker).bind(None)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"Sampler {name!r} is made from one argument, a SamplerContext; {maker!r} does not take it: "
                f"{error}."
            ) from error
        SAMPLERS.enter(name, maker)
        return maker

    return enter


@register("gp")
def _gp(s: SamplerContext) -> BaseSampler:
    if find_spec("scipy") is None:
        raise UsageError("The sampler 'gp' needs scipy: install scipy, or choose --sampler tpe.")
    return GPSampler(seed=s.seed, n_startup_trials=s.startup)


@register("tpe")
def _tpe(s: SamplerContext) -> BaseSampler:
    return TPESampler(seed=s.seed, n_startup_trials=s.startup, multivariate=True, constant_liar=True)


@register("linear")
def _linear(s: SamplerContext) -> BaseSampler:
    return LinearSampler(
        seed=s.seed,
        startup=s.startup,
        repair=s.repair,
        parameters=s.parameters,
        objectives=s.objectives,
    )


@register("nehvi")
def _nehvi(s: SamplerContext) -> BaseSampler:
    """AutoPEFT's (Zhou et al. 2024)."""
    if find_spec("botorch") is None:
        raise UsageError(
            "The sampler 'nehvi' needs BoTorch: pip install 'autopeft[botorch]', or choose --sampler linear."
        )
    if s.objectives == 1:
        raise UsageError("The sampler 'nehvi' is for two objectives: add --objective score,params.")
    from autopeft.search.optimization.samplers.noisy_hypervolume import NUMBERS, NoisyHypervolumeSampler

    startup = max(2, round(NUMBERS.random * s.trials))
    return NoisyHypervolumeSampler(seed=s.seed, startup=startup, repair=s.repair, parameters=s.parameters)


@register("random")
def _random(s: SamplerContext) -> BaseSampler:
    return RandomSampler(seed=s.seed)


def default_sampler(objectives: int = 1) -> str:
    """`tpe` for the score alone, `linear` for score and cost.

    The simplest that no other beats in `experiments/samplers`, by the confirmed winner's regret or by the
    hypervolume, after 12, 30 and 60 trials.
    """
    return "tpe" if objectives == 1 else "linear"


def make_sampler(
    name: str,
    *,
    seed: int,
    trials: int,
    objectives: int = 1,
    repaired: Repair,
    parameters: Sequence[Parameter],
) -> BaseSampler:
    """A sampler for a study of about `trials` trials; a third of them, at most 10, are drawn at random before
    it models.

    Args:
        objectives: 1 for the score alone, 2 for score and cost (see `Point`).
        repaired: maps Optuna's parameters of a suggestion to the repaired point, `None` where there is none.
        parameters: of the space.

    Raises:
        UsageError: there is no sampler of this name, a package that it needs is missing, or what it makes is
            no sampler.
    """
    maker = SAMPLERS.find(name)
    startup = max(2, min(10, trials // 3))
    context = SamplerContext(seed, trials, startup, objectives, repaired, tuple(parameters))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = maker(context)
    if not isinstance(made, BaseSampler):
        raise UsageError(f"Sampler {name!r} has to make an optuna BaseSampler, but made {made!r}.")
    return made
