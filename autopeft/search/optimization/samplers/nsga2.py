"""NSGA-II whose generations follow from the order of the trials."""

from __future__ import annotations

from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

__all__ = ["OrderedNSGAIISampler"]


class OrderedNSGAIISampler(NSGAIISampler):
    """Optuna's NSGA-II for a study that is built anew for every suggestion.

    Optuna notes each trial's generation in the trial's system attributes and the parents of each generation
    in the study's. Trials that it did not sample itself (starting points, trials of another session) have no
    generation there and never become parents. Here the first `population_size` finished trials are
    generation 0, the next ones generation 1, and so on, and parents are selected again each time, with the
    values that the trials have by now.
    """

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """The generation of a finished trial, or the one that a new trial belongs to."""
        assert self.population_size is not None
        done = _finished(study)
        earlier = sum(t.number < trial.number for t in done) if trial.state.is_finished() else len(done)
        return earlier // self.population_size

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The finished trials of a generation, in order."""
        assert self.population_size is not None
        start = generation * self.population_size
        return _finished(study)[start : start + self.population_size]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The survivors that a generation descends from, none for generation 0."""
        return [] if generation <= 0 else self.select_parent(study, generation)


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
