"""`autopeft`: AutoPEFT's own search as a preset of `trials`.

Zhou et al. 2024, arXiv:2301.12132: the space `autopeft`, half of the trials at random, the others proposed by
the sampler `nehvi` for score and size, each trained to the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel

from autopeft.search.optimization.samplers.noisy_hypervolume import AcquisitionNumbers
from autopeft.search.strategies.registry import register
from autopeft.search.strategies.trials import Trials

__all__ = ["AutoPEFTSearch"]


@register("autopeft")
class AutoPEFTSearch(Trials):
    """AutoPEFT's own search: its space, half of the trials at random, the others for score and size.

    200 trials as published. The sampler needs BoTorch; `--sampler linear` does without.
    """

    name: ClassVar[str] = "autopeft"
    space: ClassVar[str] = "autopeft"
    takes_points: ClassVar[bool] = False
    preset: ClassVar[Mapping[str, str]] = {
        "sampler": "nehvi", "objective": "score,params", "fidelity": "none"
    }  # fmt: skip
    numbers: ClassVar[type[BaseModel]] = AcquisitionNumbers
