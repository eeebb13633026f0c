"""AutoPEFT's sampler: sparse Gaussian processes of score and cost, and the hypervolume that a recipe adds.

Zhou et al. 2024 (arXiv:2301.12132) with the numbers of the authors' code (cambridgeltl/autopeft). Needs
BoTorch. qNEHVI is by Daulton et al. 2021 (arXiv:2105.08195), SAAS by Eriksson & Jankowiak 2021
(arXiv:2103.00349).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel
from scipy.special import ndtri

from autopeft.errors import UsageError
from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.hypervolume import front_of
from autopeft.search.optimization.sampler_view import History, Point, Repair
from autopeft.search.optimization.samplers.linear import draw, mutate

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["Acquisition", "AcquisitionNumbers", "NoisyHypervolumeSampler", "copula", "noisy_hypervolume"]

_Array = NDArray[np.float64]
Acquisition = Callable[[_Array], _Array]
"""Of encoded points (points, parameters) what each should add to the hypervolume (points,)."""
_TRIES = 100


class AcquisitionNumbers(BaseModel, frozen=True):
    """The authors' numbers; `methods/defaults.yaml` says where they stand.

    Attributes:
        random: the share of the trials that are drawn at random before a process is fitted.
        batch: proposals from one fit.
        warm_up, samples, thinning, depth: of the NUTS chain; every `thinning`-th sample is used.
        starts: of the local search, each a neighbour of a recipe on the front.
        evaluations: of the acquisition for one proposal, over all starts.
    """

    random: float = 0.5
    batch: int = 4
    warm_up: int = 128
    samples: int = 64
    thinning: int = 4
    depth: int = 6
    starts: int = 10
    evaluations: int = 2000


NUMBERS = AcquisitionNumbers()


class NoisyHypervolumeSampler(BaseSampler):
    """Proposes the recipe that should add most to the hypervolume of score and cost.

    Both are mapped to normal quantiles, each by a Gaussian process with SAAS priors. The search starts beside
    the front and moves to better neighbours. What is compared are repaired recipes, and the one that is
    proposed is the one that was found best.

    Args:
        startup: trials, of any state, that are drawn at random.
        repair: maps Optuna's parameters to the repaired point, `None` where there is none.
        parameters: of the space: choices and whole numbers.

    Raises:
        UsageError: the space has a parameter without steps, or a choice of three or more without an order.
    """

    def __init__(self, *, seed: int, startup: int, repair: Repair, parameters: Sequence[Parameter]) -> None:
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._startup, self._repair, self._codec = startup, repair, Codec(parameters)
        self._encoded = [p for p in parameters if p.cardinality > 1]
        for p in parameters:
            apart = p.kind == "categorical" and not p.ordered and p.cardinality > 2
            if apart or (p.kind == "float" and p.low < p.high):
                what = "choices without an order" if apart else "a range without steps"
                raise UsageError(
                    f"The sampler 'nehvi' takes sizes and switches, and {p.name} is {what}; choose another "
                    "sampler (linear), or the space autopeft."
                )
        self._fitted: tuple[int, Any] | None = None  # how many outcomes, and what was made of them

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All distributions of the space."""
        return dict(self._codec.distributions)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        return draw({param_name: param_distribution}, self._rng)[param_name]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """All parameters of the next trial."""
        history = History.of(study, self._repair)
        if history.trials < self._startup or len(history.outcomes) < 2:
            return self._random(search_space, history)
        count = len(history.outcomes)
        if self._fitted is None or not 0 <= count - self._fitted[0] < NUMBERS.batch:
            points = self.encode([o.values for o in history.outcomes])
            values = np.array([[o.objectives[0], -o.cost] for o in history.outcomes])
            self._fitted = count, noisy_hypervolume(points, copula(values), seed=self._seed + count)
        known = self._fitted[0]
        waiting = [o.values for o in history.outcomes[known:]]
        waiting += [
            t.user_attrs["point"]
            for t in study.get_trials(deepcopy=False)
            if t.state == TrialState.RUNNING and t.user_attrs.get("point")
        ]
        acquisition = self._fitted[1](self.encode(waiting))
        return self._climbed(acquisition, search_space, history) or self._random(search_space, history)

    def encode(self, values: Sequence[Mapping[str, Any]]) -> _Array:
        """Values of the space (points) as numbers from 0 to 1 (points, parameters)."""
        return np.array([[_share(p, v[p.name]) for p in self._encoded] for v in values]).reshape(
            len(values), len(self._encoded)
        )

    def _random(self, space: Mapping[str, BaseDistribution], history: History) -> dict[str, Any]:
        params = draw(space, self._rng)
        for _ in range(_TRIES):
            point = self._repair(params)
            if point is not None and point.hash not in history.hashes:
                break
            params = draw(space, self._rng)
        return params

    def _climbed(
        self, acquisition: Acquisition, space: Mapping[str, BaseDistribution], history: History
    ) -> dict[str, Any] | None:
        """The parameters of the best new recipe that a local search finds, `None` where it finds none."""
        front = front_of([(o.objectives[0], o.cost) for o in history.outcomes]).tolist()
        around = [o for o in history.outcomes if [o.objectives[0], o.cost] in front]
        best: tuple[float, dict[str, Any]] | None = None
        for _ in range(NUMBERS.starts):
            outcome = around[int(self._rng.integers(len(around)))]
            here = {**outcome.params, **self._codec.encode(outcome.values)}
            left, worth = NUMBERS.evaluations // NUMBERS.starts, -np.inf
            number = (
                1  # a start is one neighbour; each round after it looks at as many as there are parameters
            )
            while left > 0:
                found = self._neighbours(here, min(left, number), space, history)
                if not found:
                    break
                left, number = left - len(found), len(self._encoded)
                merits = acquisition(self.encode([point.values for _, point in found]))
                top = int(np.argmax(merits))
                if merits[top] > worth:
                    worth, here = float(merits[top]), found[top][0]
            if np.isfinite(worth) and (best is None or worth > best[0]):
                best = worth, here
        return None if best is None else best[1]

    def _neighbours(
        self, here: Mapping[str, Any], number: int, space: Mapping[str, BaseDistribution], history: History
    ) -> list[tuple[dict[str, Any], Point]]:
        """So many recipes beside one that are not known, as far as they are found."""
        found: list[tuple[dict[str, Any], Point]] = []
        for _ in range(_TRIES):
            params = mutate(here, space, self._rng)
            point = self._repair(params)
            if point is not None and point.hash not in history.hashes:
                found.append(({**params, **self._codec.encode(point.values)}, point))
            if len(found) == number:
                break
        return found


def _share(parameter: Parameter, value: Any) -> float:
    if parameter.kind == "categorical":
        return parameter.choices.index(value) / (len(parameter.choices) - 1)
    return float((value - parameter.low) / (parameter.high - parameter.low))


def copula(values: _Array) -> _Array:
    """Each column's values as normal quantiles of the share that is not larger, kept in [1e-4, 1 - 1e-4]."""
    shares = (values[None, :, :] <= values[:, None, :]).mean(axis=1)
    found: _Array = ndtri(np.clip(shares, 1e-4, 1 - 1e-4))
    return found


def noisy_hypervolume(points: _Array, values: _Array, *, seed: int) -> Callable[[_Array], Acquisition]:
    """What recipes should add to the hypervolume of those that were trained, beside others that still run.

    Args:
        points: (trials, parameters), encoded.
        values: (trials, 2), both to be large.

    Returns:
        A function of the points (waiting, parameters) that still run.
    """
    import torch
    from botorch.acquisition.multi_objective import qNoisyExpectedHypervolumeImprovement
    from botorch.exceptions.warnings import BotorchWarning
    from botorch.fit import fit_fully_bayesian_model_nuts
    from botorch.models import ModelListGP
    from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
    from botorch.utils.multi_objective import infer_reference_point, is_non_dominated

    # BoTorch warns of values that are not standardised, and prefers logarithms of what the paper takes.
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", BotorchWarning)
        torch.manual_seed(seed)
        x, y = torch.from_numpy(points), torch.from_numpy(values)
        y = y + 1e-4 * torch.randn_like(y)
        models = [SaasFullyBayesianSingleTaskGP(x, y[:, i : i + 1]) for i in range(y.shape[1])]
        for model in models:
            fit_fully_bayesian_model_nuts(
                model,
                max_tree_depth=NUMBERS.depth,
                warmup_steps=NUMBERS.warm_up,
                num_samples=NUMBERS.samples,
                thinning=NUMBERS.thinning,
                disable_progbar=True,
                seed=seed,
            )
        reference = infer_reference_point(y[is_non_dominated(y)])

    def beside(waiting: _Array) -> Acquisition:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", BotorchWarning)
            torch.manual_seed(seed + len(waiting))
            merit = qNoisyExpectedHypervolumeImprovement(
                ModelListGP(*models),
                ref_point=reference,
                X_baseline=x,
                prune_baseline=True,
                X_pending=torch.from_numpy(waiting) if len(waiting) else None,
            )

        def acquisition(at: _Array) -> _Array:
            with torch.no_grad():
                found: _Array = merit(torch.from_numpy(at).unsqueeze(1)).double().numpy()
                return found

        return acquisition

    return beside
