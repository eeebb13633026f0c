"""AutoPEFT's own search (Zhou et al., TACL 2024, arXiv 2301.12132), on any objective; needs
`botorch`, `jax`, `jaxlib` and `numpyro`.

From the description of the paper and of its code:

- points: codes 0 … 10 for the three sizes (width / 2ᵏ, 9 is 1, 10 is absent), 0 or 1 for each layer that is
  left out; raw codes, scaled to the unit cube;
- objectives: −parameters in percent and the score, each with noise of N(0, 1e-4); reference (−26 %, 0.7);
- first 100 points at random, without those that leave nothing; then batches of 4;
- each objective is mapped to normal quantiles of its empirical distribution, held in [1e-4, 0.9999];
- an independent fully Bayesian Gaussian process with SAAS priors for each (NUTS, 128 steps of warm-up, 64
  samples, every fourth kept);
- noisy expected hypervolume improvement, its baseline pruned, maximised by local search from 10 random
  neighbours of points of the front, 2,000 values at most for each point, the batch greedily one by one.

What is open there and was chosen here: the reference goes through the same quantiles; 128 quasi-random
samples estimate the acquisition; where a local search has ended before its share of the 2,000 values,
the rest is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import torch
from botorch.acquisition.multi_objective.monte_carlo import qNoisyExpectedHypervolumeImprovement
from botorch.fit import fit_fully_bayesian_model_nuts
from botorch.models import ModelListGP
from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.multi_objective.pareto import is_non_dominated
from numpy.typing import NDArray
from scipy.stats import norm

__all__ = ["SIZES", "Code", "Paper", "Settings"]

Code = tuple[int, ...]
SIZES, _ABSENT = 11, 10
_NOISE = 1e-4
_REFERENCE = (-26.0, 0.7)


@dataclass(frozen=True)
class Settings:
    """Numbers of the search; the defaults are those of the published command line."""

    trials: int = 200
    random: int = 100
    batch: int = 4
    warmup: int = 128
    samples: int = 64
    thinning: int = 4
    starts: int = 10
    values: int = 2000


class Paper:
    """One search.

    Args:
        layers: of the backbone.
        evaluate: share of parameters (in percent) and score of a point.
        first: random points that are there already and are taken before others are drawn.
    """

    def __init__(
        self,
        layers: int,
        evaluate: Callable[[Code], tuple[float, float]],
        *,
        seed: int,
        settings: Settings = Settings(),
        first: Sequence[Code] = (),
    ) -> None:
        self._first = list(reversed(first))
        self._layers, self._evaluate, self._settings = layers, evaluate, settings
        self._rng = np.random.default_rng(seed)
        self.codes: list[Code] = []
        self.outcomes: list[tuple[float, float]] = []
        torch.manual_seed(seed)

    def run(self) -> Iterator[int]:
        """Search; yields the number of points so far, after each batch."""
        s = self._settings
        while len(self.codes) < s.trials:
            left = s.trials - len(self.codes)
            if len(self.codes) < s.random:
                batch = [self._draw() for _ in range(min(s.batch, s.random - len(self.codes)))]
            else:
                batch = self._propose(min(s.batch, left))
            for code in batch:
                percent, score = self._evaluate(code)
                noise = self._rng.normal(0.0, _NOISE, 2)
                self.codes.append(code)
                self.outcomes.append((-percent + noise[0], score + noise[1]))
            yield len(self.codes)

    def _draw(self) -> Code:
        if self._first:
            return self._first.pop()
        while True:
            code = tuple(
                [int(k) for k in self._rng.integers(0, SIZES, 3)]
                + [int(k) for k in self._rng.integers(0, 2, self._layers)]
            )
            if self.allowed(code):
                return code

    def allowed(self, code: Sequence[int]) -> bool:
        """Whether something is left: a module, and a layer to put it into."""
        return any(k != _ABSENT for k in code[:3]) and any(k == 0 for k in code[3:])

    def neighbours(self, code: Code) -> list[Code]:
        """The points one step away: a size one code up or down, or one layer switched."""
        found = []
        for i, k in enumerate(code):
            steps = (k - 1, k + 1) if i < 3 else (1 - k,)
            top = SIZES - 1 if i < 3 else 1
            found += [(*code[:i], step, *code[i + 1 :]) for step in steps if 0 <= step <= top]
        return [code for code in found if self.allowed(code)]

    def _propose(self, count: int) -> list[Code]:
        x = self._cube(self.codes)
        y, reference = _quantiles(np.array(self.outcomes), _REFERENCE)
        model = ModelListGP(*[self._fitted(x, y[:, [i]]) for i in range(2)])
        front = [self.codes[i] for i in torch.nonzero(is_non_dominated(y)).flatten().tolist()]
        batch: list[Code] = []
        while len(batch) < count:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                acquisition = qNoisyExpectedHypervolumeImprovement(
                    model,
                    ref_point=reference.tolist(),
                    X_baseline=x,
                    prune_baseline=True,
                    sampler=SobolQMCNormalSampler(torch.Size([128]), seed=int(self._rng.integers(1 << 30))),
                    X_pending=self._cube(batch) if batch else None,
                    cache_root=False,
                )
            batch.append(self._restore(acquisition, front, batch))
        return batch

    def _fitted(self, x: torch.Tensor, y: torch.Tensor) -> SaasFullyBayesianSingleTaskGP:
        s = self._settings
        model = SaasFullyBayesianSingleTaskGP(x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit_fully_bayesian_model_nuts(
                model,
                warmup_steps=s.warmup,
                num_samples=s.samples,
                thinning=s.thinning,
                disable_progbar=True,
            )
        # Every fit compiles a program of its own: kept, they take 3 GB a search, and the second one fails.
        jax.clear_caches()
        return model

    def _restore(
        self, acquisition: Callable[[torch.Tensor], torch.Tensor], front: list[Code], batch: list[Code]
    ) -> Code:
        """The best point that local search finds, which is not in the batch already."""
        s = self._settings
        starts: set[Code] = set()
        for _ in range(20 * s.starts):
            near = self.neighbours(front[self._rng.integers(len(front))])
            starts.add(near[self._rng.integers(len(near))])
            if len(starts) == s.starts:
                break
        known: dict[Code, float] = {}

        def value(codes: list[Code]) -> list[float]:
            new = [c for c in dict.fromkeys(codes) if c not in known][: max(0, s.values - len(known))]
            for begin in range(0, len(new), 64):
                part = new[begin : begin + 64]
                with torch.no_grad():
                    found = acquisition(self._cube(part).unsqueeze(1))
                known.update(zip(part, found.tolist(), strict=True))
            return [known.get(c, -np.inf) for c in codes]

        heads = sorted(starts)
        value(heads)
        while heads and len(known) < s.values:
            onward = []
            for here in heads:
                near = self.neighbours(here)
                best = int(np.argmax(scores := value(near)))
                if scores[best] > known.get(here, -np.inf):
                    onward.append(near[best])
            heads = list(dict.fromkeys(onward))
        return max((c for c in known if c not in batch), key=lambda c: known[c])

    def _cube(self, codes: Sequence[Code]) -> torch.Tensor:
        scale = torch.tensor([SIZES - 1.0] * 3 + [1.0] * self._layers, dtype=torch.float64)
        return torch.tensor(codes, dtype=torch.float64) / scale


def _quantiles(
    outcomes: NDArray[np.float64], reference: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outcomes and the reference as normal quantiles of the outcomes' empirical distributions."""
    n = len(outcomes)
    columns, places = [], []
    for column, value in zip(outcomes.T, reference, strict=True):
        ranked = np.sort(column)
        columns.append(_normal(np.searchsorted(ranked, column, side="right") / n))
        places.append(_normal(np.searchsorted(ranked, value, side="right") / n))
    return torch.tensor(np.stack(columns, axis=1)), torch.tensor(np.array(places))


def _normal(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(norm.ppf(np.clip(share, 1e-4, 0.9999)))
